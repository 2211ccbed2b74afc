import type { Pool, PoolClient } from 'pg'

import { isDatabaseError, isTransient } from '../errors.ts'
import { query } from '../executor.ts'
import { inTransaction } from '../transaction.ts'
import type { BatchHotKey, HotKeys } from './hot-keys.ts'
import type { AppliedChanges, Reporter } from './reporter.ts'

export interface BatchResult {
  /** Another worker has the counter. */
  busy: boolean
  events: number | null
  keys: number | null
  carried: number | null
  /** How many of the keys were not tried, as too many rows would have been locked at once. */
  packed: number | null
  /** There is more. */
  cut: boolean
  hot_keys: BatchHotKey[] | null
}

/** Who is told what a transaction has changed; by default nobody, which costs nothing. */
export interface Telling {
  reporter?: Reporter | undefined
  notify?: boolean
  hotKeys?: HotKeys | undefined
}

interface Told {
  version: number | null
  /** Each a key and its new stored count. */
  changes: [key: string, value: string][] | null
}

interface Locked {
  keys: number | null
  packed?: number | null
  locked_ms: number | null
}

/** No transaction shall keep rows of the application locked for much longer. */
const longestLockMs = 100
const keysPerPack = 100
const leastKeys = keysPerPack
const firstKeys = 10_000
const mostKeys = 100_000
const attempts = 10
// The second is new in PostgreSQL 17.
const unhurried = `select set_config(name, '0', true) from pg_settings where name in ('statement_timeout', 'transaction_timeout')`

/** The transactions that change a counter's target; each locks so many rows as the last ones let expect to take `longestLockMs`. */
export class Applier {
  readonly #pool: Pool
  readonly #schema: string
  readonly #name: string
  readonly #reporter: Reporter | undefined
  readonly #notify: boolean
  readonly #hotKeys: HotKeys | undefined
  #maxKeys = firstKeys
  #isUnhurried = false

  constructor(pool: Pool, schema: string, name: string, { reporter, notify = false, hotKeys }: Telling = {}) {
    this.#pool = pool
    this.#schema = schema
    this.#name = name
    this.#reporter = reporter
    this.#notify = notify
    this.#hotKeys = hotKeys
  }

  /** Takes the next batch, of `maxEvents` at most, and adds it: as many keys together with it as may be locked at once, the others afterwards. */
  async applyBatch(maxEvents: number | null): Promise<BatchResult> {
    const result = await this.#apply<BatchResult & Locked>('apply_batch($1::text, max_events => $4::int4, max_keys => $5::int4, report => $2, notify => $3, max_hot_keys => $6::int4)', [
      maxEvents,
      this.#maxKeys,
      this.#hotKeys?.perBatch ?? 0,
    ])
    if (result.hot_keys !== null) this.#hotKeys?.add(this.#name, result.hot_keys)
    if (result.packed !== null && result.packed > 0) await this.#applyPacked()
    return result
  }

  /** Tries everything that is carried once. */
  async applyCarried(): Promise<void> {
    await this.#applyPacked()
    let after: string | null = null
    do {
      const { last_key }: Locked & { last_key: string | null } = await this.#apply('apply_carried($1::text, after_key => $4::text, max_keys => $5::int4, report => $2, notify => $3)', [after, this.#maxKeys])
      after = last_key
    } while (after !== null)
  }

  /** Stands in line for the row that has been carried longest. */
  async waitForCarried(): Promise<void> {
    await this.#transaction('wait_for_carried($1::text, report => $2, notify => $3)', [])
  }

  /** After a timeout: try with less. */
  takeLess(): void {
    this.#maxKeys = Math.max(Math.round(this.#maxKeys / 8 / keysPerPack) * keysPerPack, leastKeys)
  }

  /** Where less did not do: the next transaction that gets through may take as long as it takes, whatever timeouts the role has. */
  takeTime(): void {
    this.#isUnhurried = true
  }

  async #applyPacked(): Promise<void> {
    while ((await this.#apply('apply_packed($1::text, max_keys => $4::int4, report => $2, notify => $3)', [this.#maxKeys])).keys !== null);
  }

  async #apply<R extends Locked>(call: string, values: unknown[]): Promise<R> {
    const result = await this.#transaction<R & Told>(call, values)
    this.#adapt(result)
    return result
  }

  #adapt({ keys, packed, locked_ms: lockedMs }: Locked): void {
    if (keys === null || lockedMs === null) return
    const tried = keys - (packed ?? 0)
    // A few rows tell how long a transaction takes, not how long a row does.
    if (tried < this.#maxKeys && lockedMs < longestLockMs) return
    const keysInTime = (tried / lockedMs) * longestLockMs
    const packs = Math.round(Math.min(keysInTime, this.#maxKeys * 2, mostKeys) / keysPerPack)
    this.#maxKeys = Math.max(packs * keysPerPack, leastKeys)
  }

  /**
   * A crash that takes the last of these away takes counts and position together: they are simply done again, so their commit need not be
   * waited for; unless somebody is told of them, as that cannot be taken back. One that failed because of other transactions is done again as well (see add_deltas.sql).
   *
   * @param values from `$4` on
   */
  async #transaction<R extends Told>(call: string, values: unknown[]): Promise<R> {
    const isTold = this.#reporter !== undefined || this.#notify
    for (let attempt = 1; ; attempt++) {
      let endTurn: ReturnType<Reporter['takeTurn']> | undefined
      const work = async (client: PoolClient) => {
        if (this.#isUnhurried) await query(client, unhurried)
        const all = [this.#name, this.#reporter !== undefined, this.#notify, ...values]
        // As JSON text, which no type parser of the caller's changes.
        const [row] = await query<{ result: string }>(client, `select row_to_json(r)::text as result from ${this.#schema}.${call} r`, all)
        const result = JSON.parse(row?.result ?? '') as R
        if (result.changes !== null) endTurn = this.#reporter?.takeTurn()
        return result
      }
      try {
        const result = await inTransaction(this.#pool, work, { asynchronousCommit: !isTold, readWrite: true })
        this.#isUnhurried = false
        await endTurn?.(this.#changes(result))
        return result
      } catch (error) {
        await endTurn?.()
        const lockTimedOut = isDatabaseError(error) && error.code === '55P03'
        if (attempt === attempts || !(lockTimedOut || isTransient(error))) throw error
      }
    }
  }

  #changes({ version, changes }: Told): AppliedChanges {
    return {
      counter: this.#name,
      version: BigInt(version ?? 0),
      changes: (changes ?? []).map(([key, value]) => ({ key, value: Number.isSafeInteger(Number(value)) ? Number(value) : BigInt(value) })),
    }
  }
}
