import { apiReference } from './api-reference.ts'
import { commandLineReference } from './command-line-reference.ts'
import { sqlReference } from './sql-reference.ts'

/** All generated documents: their text by their path, from the repository's root. */
export async function generateReferences(): Promise<Map<string, string>> {
  const parts = await Promise.all([apiReference(), commandLineReference(), sqlReference()])
  return new Map(parts.flatMap((part) => [...part]))
}
