import type { Pool } from 'pg'
import { z } from 'zod'

import type { Key } from '../counters/definition.ts'
import { PgtallyError, describeError, isDatabaseError, translateError } from '../errors.ts'
import { query } from '../executor.ts'
import { inTransaction } from '../transaction.ts'
import { isRowFault } from './faults.ts'
import { isKey } from './values.ts'

export interface BufferedOptions {
  /** Sums are written at most that long after they were begun, in ms, and tried again as often while the database is away. Default 1 000. */
  flushIntervalMs?: number | undefined
  /** Sums of so many keys are written at once, without waiting for the time; and so many at most in one transaction. Default 10 000. */
  maxKeys?: number | undefined
  /** Told what `flush()` would throw, where that runs by itself. Without it, nobody is. */
  onError?: ((error: unknown) => void) | undefined
}

const bufferedDefaults = { flushIntervalMs: 1000, maxKeys: 10_000 } as const

const optionsSchema = z.strictObject({
  // What a timer can hold.
  flushIntervalMs: z.int().min(1).max(2 ** 31 - 1).default(bufferedDefaults.flushIntervalMs),
  maxKeys: z.int().min(1).default(bufferedDefaults.maxKeys),
  onError: z.custom<(error: unknown) => void>((value) => typeof value === 'function', 'onError must be a function').optional(),
})

type Sums = readonly (readonly [key: string, sum: bigint])[]

/** Sums whose transaction was to be committed when the connection was lost. */
interface Unresolved {
  transaction: string
  /** The cluster that it was in; its id means nothing in another one. */
  cluster: string
  sums: Sums
}

const largestSum = 2n ** 63n - 1n

/**
 * Adds up in this process and writes the sums now and then, for what comes often and need not survive a crash of the process: views, plays. Made by `tally.buffered()`.
 *
 * - Lost is what was added since the last flush when the process crashes or calls `process.exit()` without `close()`: about `flushIntervalMs`.
 * - Apart from that each `add()` counts once, also when the connection is lost in the middle of a commit: the server is asked what became of it before the sums
 *   are written again. Where no server can tell any more (another cluster, or an id long gone) they are not written again, and reported as OUTCOME_UNKNOWN.
 *   Should the server itself crash in that very moment, its next transaction may have the same id, and that flush may be missing.
 * - While the database is away, sums are kept: memory grows with the number of different keys, and not with that of calls.
 * - A key that the counter cannot have (no uuid, more than 2 000 bytes) is dropped and reported as INVALID_EVENT; the others are written.
 * - As long as something is to be written the process stays alive for it; otherwise it may end.
 */
export class BufferedCounter<K extends Key = Key> implements AsyncDisposable {
  readonly name: string
  readonly #pool: Pool
  readonly #schema: string
  readonly #flushIntervalMs: number
  readonly #maxKeys: number
  readonly #onError: (error: unknown) => void

  #sums = new Map<string, bigint>()
  readonly #unresolved = new Set<Unresolved>()
  #flushing: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  /** Then only the timer tries again, and not every `add()`. */
  #failed = false
  #closed = false

  /** @internal Use `tally.buffered()`. */
  constructor(name: string, schema: string, pool: Pool, options: BufferedOptions) {
    const parsed = optionsSchema.safeParse(options)
    if (!parsed.success) throw new PgtallyError('INVALID_ARGUMENT', `buffered(): ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
    this.name = name
    this.#schema = schema
    this.#pool = pool
    this.#flushIntervalMs = parsed.data.flushIntervalMs
    this.#maxKeys = parsed.data.maxKeys
    this.#onError = parsed.data.onError ?? (() => {})
  }

  /**
   * Adds `delta` to the count of `key`, in memory: it neither waits nor fails because of the database.
   *
   * @param delta a whole number, negative to take away
   * @throws PgtallyError INVALID_EVENT (no key, no whole number, or a sum beyond a bigint), CLOSED
   */
  add(key: K, delta: number | bigint = 1): void {
    if (this.#closed) throw new PgtallyError('CLOSED', `The buffered counter "${this.name}" was closed. Make another one.`)
    if (!isKey(key) || !(typeof delta === 'bigint' || Number.isSafeInteger(delta))) {
      throw new PgtallyError('INVALID_EVENT', `Counter "${this.name}": ${String(delta)} cannot be added to ${String(key)}. Use a string, a bigint or a whole number as the key, and a whole number or a bigint to add.`)
    }
    this.#sum(String(key), BigInt(delta))
    if (this.#sums.size >= this.#maxKeys && this.#flushing === undefined && !this.#failed) this.#flushInBackground()
    else this.#startTimer()
  }

  /**
   * Writes what was added so far. When it resolves, that is committed. When it throws, what could not be written is kept and will be tried again, but for
   * what the error names as dropped; the rest is committed.
   *
   * @throws PgtallyError INVALID_EVENT (keys that were dropped, or the counter counts rows of a table), NOT_FOUND (no such counter), NOT_INSTALLED, OUTCOME_UNKNOWN; errors of the server and
   * of connecting unwrapped; AggregateError for several of these
   */
  async flush(): Promise<void> {
    // What is under way began before; what was added since needs another.
    if (this.#flushing !== undefined) await this.#flushing.catch(() => {})
    await (this.#flushing ??= this.#write())
  }

  /**
   * Takes no more, and writes what was added.
   *
   * @throws as `flush()`; what could not be written can be tried again by calling it again, until the process ends
   */
  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.flush()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Not unref'd: the process shall not end with something unwritten. */
  #startTimer(): void {
    if (this.#closed) return
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      this.#flushInBackground()
    }, this.#flushIntervalMs)
  }

  #flushInBackground(): void {
    if (this.#flushing === undefined) this.flush().catch(this.#onError)
  }

  async #write(): Promise<void> {
    const errors: unknown[] = []
    try {
      await this.#resolve(errors)
      await this.#writeSums(errors)
    } catch (error) {
      errors.push(translateError(error))
    }
    this.#flushing = undefined
    this.#failed = errors.length > 0
    if (this.#sums.size > 0 || this.#unresolved.size > 0) this.#startTimer()
    if (errors.length > 1) throw new AggregateError(errors, errors.map(describeError).join(' '))
    if (errors.length === 1) throw errors[0]
  }

  /** @throws what keeps the sums from being written, which are kept */
  async #writeSums(errors: unknown[]): Promise<void> {
    const sums = [...this.#sums].filter(([, sum]) => sum !== 0n)
    this.#sums = new Map()
    const parts: Sums[] = []
    for (let from = 0; from < sums.length; from += this.#maxKeys) parts.push(sums.slice(from, from + this.#maxKeys))
    const dropped: { key: string; sum: bigint; fault: unknown }[] = []
    let isCounterFine = false
    try {
      for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
        const fault = await this.#writePart(part)
        if (fault === undefined) continue
        // What is not because of the counter is because of a key: the halves without it go through.
        if (!isCounterFine) await this.#checkCounter(part)
        isCounterFine = true
        const [[key, sum] = ['', 0n]] = part
        const half = part.length >> 1
        if (half === 0) dropped.push({ key, sum, fault })
        else parts.push(part.slice(0, half), part.slice(half))
      }
    } finally {
      for (const part of parts) this.#putBack(part)
      if (dropped[0] !== undefined) {
        const { key, sum, fault } = dropped[0]
        const others = dropped.length === 1 ? '' : `, and those for ${dropped.length - 1} more keys`
        errors.push(new PgtallyError('INVALID_EVENT', `Counter "${this.name}": ${sum} for the key "${key.slice(0, 100)}" was dropped${others}: ${describeError(fault)}`, { cause: fault }))
      }
    }
  }

  /**
   * Writes the sums in one transaction.
   *
   * @returns the error, if another selection of keys may do
   * @throws any other error; then the sums are kept
   */
  async #writePart(sums: Sums): Promise<unknown> {
    let sent: { token: string; cluster: string } | undefined
    try {
      await inTransaction(this.#pool, async (client) => {
        const { rows } = await client.query<{ token: string; cluster: string }>(
          `select ${this.#schema}.add_events($1::text, $2::text[], $3::bigint[])::text as token, system_identifier::text as cluster from pg_catalog.pg_control_system()`,
          [this.name, sums.map(([key]) => key), sums.map(([, sum]) => String(sum))],
        )
        sent = rows[0]
      })
      return undefined
    } catch (error) {
      // Whatever happened to the COMMIT, the server knows.
      if (sent !== undefined) this.#unresolved.add({ transaction: sent.token, cluster: sent.cluster, sums })
      else if (isRowFault(error)) return error
      else this.#putBack(sums)
      throw error
    }
  }

  /** @throws what is wrong with the counter; then the sums are kept */
  async #checkCounter(sums: Sums): Promise<void> {
    try {
      await query(this.#pool, `select ${this.#schema}.add_events($1::text, '{}', '{}')`, [this.name])
    } catch (error) {
      this.#putBack(sums)
      throw error
    }
  }

  /** Finds out what became of transactions whose commit was not answered. */
  async #resolve(errors: unknown[]): Promise<void> {
    for (const unresolved of this.#unresolved) {
      const { transaction, cluster, sums } = unresolved
      const status = await this.#transactionStatus(transaction, cluster)
      if (status === 'in progress') {
        errors.push(new PgtallyError('OUTCOME_UNKNOWN', `Counter "${this.name}": the server has not ended transaction ${transaction} yet, in which ${sums.length} sums were written. The next flush asks again.`))
        continue
      }
      if (status === 'unknown') {
        errors.push(new PgtallyError('OUTCOME_UNKNOWN', `Counter "${this.name}": this server cannot tell whether transaction ${transaction} was committed, in which ${sums.length} sums were written. They are not written again.`))
      } else if (status === 'aborted') {
        this.#putBack(sums)
      }
      this.#unresolved.delete(unresolved)
    }
  }

  async #transactionStatus(transaction: string, cluster: string): Promise<string> {
    try {
      const [row] = await query<{ status: string }>(
        this.#pool,
        // A standby may not have come so far yet.
        `select case when system_identifier::text <> $2::text then 'unknown' when pg_catalog.pg_is_in_recovery() then 'in progress'
          else coalesce(pg_catalog.pg_xact_status($1::text::xid8), 'unknown') end as status from pg_catalog.pg_control_system()`,
        [transaction, cluster],
      )
      return row?.status ?? 'unknown'
    } catch (error) {
      // It lies in the future of this server, which took over without it.
      if (isDatabaseError(error) && error.code === '22023') return 'aborted'
      throw error
    }
  }

  #putBack(sums: Sums): void {
    for (const [key, sum] of sums) this.#sums.set(key, (this.#sums.get(key) ?? 0n) + sum)
  }

  /** @throws PgtallyError INVALID_EVENT */
  #sum(key: string, delta: bigint): void {
    const sum = (this.#sums.get(key) ?? 0n) + delta
    if (sum > largestSum || sum < -largestSum) throw new PgtallyError('INVALID_EVENT', `Counter "${this.name}": the sum for "${key}" would be ${sum}, beyond what a bigint holds. Add less, or flush more often.`)
    this.#sums.set(key, sum)
  }
}
