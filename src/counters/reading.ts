import { PgtallyError, translateArgumentError } from '../errors.ts'
import { query } from '../executor.ts'
import type { Executor, Row } from '../executor.ts'
import { safeNumber } from './count.ts'

/** A counter, and where it is read. */
export interface ReadingPlace {
  executor: Executor
  schema: string
  name: string
}

/** Columns of the target, and the values that they must have. */
export type Scope = Readonly<Record<string, string | number | bigint | boolean | null>>

/** What lists of keys have in common. */
export interface ListOptions {
  /** Read here instead of on the pool, for example inside a transaction. */
  executor?: Executor | undefined
  /** How many keys, 1 to 10,000. Default 10. */
  limit?: number | undefined
  /** Only keys whose row in the target has these values, as in `{ category_id: 7 }`. The target is a table of yours then. */
  where?: Scope | undefined
}

/** @throws PgtallyError INVALID_ARGUMENT (a time, or length of time, that the server does not understand) */
export async function read<R extends Row>({ executor }: ReadingPlace, text: string, values: readonly unknown[]): Promise<R[]> {
  try {
    return await query<R>(executor, text, values)
  } catch (error) {
    throw translateArgumentError(error)
  }
}

/** The count of a key, as it came from the server. */
export function countOf({ name }: ReadingPlace, key: string, text: string, bigint: boolean): number | bigint {
  return bigint ? BigInt(text) : safeNumber(name, key, BigInt(text))
}

/** @throws PgtallyError INVALID_ARGUMENT */
export function wholeNumberText(option: string, value: number): string {
  if (!Number.isSafeInteger(value)) throw new PgtallyError('INVALID_ARGUMENT', `${option} is ${String(value)}. Use a whole number.`)
  return String(value)
}

/** @throws PgtallyError INVALID_ARGUMENT */
export function timeText(option: string, time: Date): string {
  // Callers without types pass texts and numbers, too.
  if (!(time instanceof Date) || Number.isNaN(time.getTime())) throw new PgtallyError('INVALID_ARGUMENT', `${option} is "${String(time)}". Use a valid Date.`)
  return time.toISOString()
}

/** As a JSON object. @throws PgtallyError INVALID_ARGUMENT */
export function scopeText(where: Scope | undefined): string | undefined {
  if (where === undefined) return undefined
  // What is undefined would be left out of the JSON, and all keys be listed.
  for (const [column, value] of Object.entries(where)) {
    const valid = value === null || ['string', 'bigint', 'boolean'].includes(typeof value) || Number.isFinite(value)
    if (!valid) throw new PgtallyError('INVALID_ARGUMENT', `where.${column} is ${String(value)}. Use a string, a number, a bigint, a boolean or null.`)
  }
  return JSON.stringify(where, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))
}
