import type { Pool, PoolClient } from 'pg'

import { describeError } from './errors.ts'
import { inTransaction } from './transaction.ts'

const freshMs = 1000
// A backlog of millions takes seconds to count; to look at it shall not be what keeps the database busy.
const restsPerRead = 4
const patienceMs = 2000
const givenUpMs = 30_000
const silentMs = 35_000

/** What is known of the database. */
export interface Knowledge<T> {
  /** Undefined until it has been read once. */
  value: T | undefined
  /** When that was read, as of `performance.now()`. */
  readAt: number
  /** Why it could not be read just now, in a line. */
  error: string | undefined
  /** The same as it was thrown; undefined also when the database was only late. */
  cause: unknown
}

/**
 * Something of the database for whoever shows it: read when asked for, at most once a second, a fifth of the time at most, and by one connection at a time, however many ask.
 * Whoever asks waits two seconds for it at most, then is given what was known before.
 */
export class Known<T> {
  readonly #pool: Pool
  readonly #read: (client: PoolClient) => Promise<T>
  #knowledge: Knowledge<T> = { value: undefined, readAt: 0, error: undefined, cause: undefined }
  #nextAt = Number.NEGATIVE_INFINITY
  #reading: Promise<void> | undefined

  constructor(pool: Pool, read: (client: PoolClient) => Promise<T>) {
    this.#pool = pool
    this.#read = read
  }

  /** Never throws. */
  async get(): Promise<Knowledge<T>> {
    if (this.#reading === undefined) {
      if (performance.now() < this.#nextAt) return this.#knowledge
      this.#reading = this.#refresh().finally(() => {
        this.#reading = undefined
      })
    }
    const { promise: late, resolve } = Promise.withResolvers<'late'>()
    const timer = setTimeout(resolve, patienceMs, 'late')
    const outcome = await Promise.race([this.#reading, late])
    clearTimeout(timer)
    return outcome === 'late' ? { ...this.#knowledge, error: `the database has not answered within ${patienceMs} ms`, cause: undefined } : this.#knowledge
  }

  async #refresh(): Promise<void> {
    const startedAt = performance.now()
    try {
      const value = await inTransaction(
        this.#pool,
        async (client) => {
          // The server gives up by itself; a connection that has gone silent is closed from here.
          await client.query(`set local statement_timeout = ${givenUpMs}`)
          return this.#read(client)
        },
        { signal: AbortSignal.timeout(silentMs) },
      )
      this.#knowledge = { value, readAt: performance.now(), error: undefined, cause: undefined }
    } catch (error) {
      this.#knowledge = { ...this.#knowledge, error: describeError(error), cause: error }
    }
    const now = performance.now()
    this.#nextAt = now + Math.max(freshMs, (now - startedAt) * restsPerRead)
  }
}
