// Writes the references below docs/ that are made from the sources: npm run docs

import { mkdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'

import { apiDirectory, apiReference } from './api-reference.ts'
import { commandLineReference } from './command-line-reference.ts'
import { sqlReference } from './sql-reference.ts'

const references = await Promise.all([apiReference(), commandLineReference(), sqlReference()])
await rm(apiDirectory, { recursive: true, force: true })
for (const [file, text] of references.flatMap((reference) => [...reference])) {
  await mkdir(path.dirname(file), { recursive: true })
  await writeFile(file, text)
  process.stdout.write(`${file}\n`)
}
