import { Command, InvalidArgumentError } from 'commander'
import ms from 'ms'
import type { StringValue } from 'ms'
import pg from 'pg'
import type { Pool } from 'pg'

import { PgtallyError } from '../errors.ts'
import { defaultSchema } from '../schema.ts'
import { createTally } from '../tally.ts'
import type { Tally } from '../tally.ts'

/** Exit codes: 0 is success. */
export const negativeAnswer = 1
export const wrongUsage = 2

export interface ConnectionOptions {
  databaseUrl?: string
  schema: string
}

/** A command that works on a database: with the options that say which. */
export function databaseCommand(name: string): Command {
  return new Command(name)
    .option('--database-url <url>', 'the database (default: DATABASE_URL, else the usual PG* variables)')
    .option('--schema <name>', 'the schema that pgtally is installed in', defaultSchema)
}

export interface Connection {
  pool: Pool
  tally: Tally
}

/** Runs `work` on a pool that is closed afterwards. */
export async function withConnection<T>({ databaseUrl, schema }: ConnectionOptions, work: (connection: Connection) => Promise<T>): Promise<T> {
  const pool = createPool(databaseUrl)
  try {
    return await work({ pool, tally: createTally({ pool, schema }) })
  } finally {
    await pool.end()
  }
}

export function createPool(databaseUrl: string | undefined = process.env.DATABASE_URL, max = 10): Pool {
  // Without a connection string, pg itself looks at the PG* variables.
  const pool = new pg.Pool({ ...(databaseUrl ? { connectionString: databaseUrl } : {}), max, application_name: 'pgtally' })
  // An idle connection that dies reports it here; unheard, it would end the process. The next statement tells.
  pool.on('error', () => {})
  return pool
}

export function printLine(text: string): void {
  process.stdout.write(`${text}\n`)
}

export function printJson(value: unknown): void {
  printLine(JSON.stringify(value, null, 2))
}

/** Parses an option's value as a whole number of at least `smallest`, and of `largest` at most. */
export function wholeNumber(smallest: number, largest = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const number = Number(text)
    if (!/^-?\d+$/.test(text) || number < smallest || number > largest) {
      throw new InvalidArgumentError(`It must be a whole number, ${largest === Number.MAX_SAFE_INTEGER ? `${smallest} or more` : `from ${smallest} to ${largest}`}.`)
    }
    return number
  }
}

/** Parses an option's value such as `30s`, `1h` or `2 days`, and returns milliseconds. */
export function duration(text: string): number {
  const milliseconds = /[a-z]/i.test(text) ? ms(text as StringValue) : undefined
  if (milliseconds === undefined || !(milliseconds >= 0)) throw new InvalidArgumentError('It must be a time with its unit, such as 30s, 10m or 1h.')
  return milliseconds
}

/** Checks an option's value such as `1h` or `1 month`, and leaves it to the server, which knows that months differ. */
export function interval(text: string): string {
  if (!/^\d.*[a-z]/i.test(text)) throw new InvalidArgumentError('It must be a time with its unit, such as 15m, 1h or 1 month.')
  return text
}

/** The exit code for an error that ended a command. */
export function exitCodeFor(error: unknown): number {
  const usage = ['INVALID_ARGUMENT', 'INVALID_DEFINITION']
  return error instanceof PgtallyError && usage.includes(error.code) ? wrongUsage : negativeAnswer
}
