import { setTimeout as sleep } from 'node:timers/promises'

import type { Pool } from 'pg'

import { PgtallyError } from '../errors.ts'
import { query } from '../executor.ts'
import type { Executor, Row } from '../executor.ts'
import { traced } from '../open-telemetry.ts'
import type { ExportedBatch } from '../queue/batch.ts'
import { audit } from './audit.ts'
import type { AuditOptions } from './audit.ts'
import { safeNumber } from './count.ts'
import type { Count, CountOptions, NumberOf, ReadOptions } from './count.ts'
import type { Key } from './definition.ts'
import type { Measurement } from './measure.ts'
import { receiveBatch } from './receive.ts'
import type { ReceiveOptions } from './receive.ts'
import { reconcile, reset } from './reconcile.ts'
import type { ReconcileOptions } from './reconcile.ts'
import { series } from './series.ts'
import type { Bucket, SeriesOptions } from './series.ts'
import { top } from './top.ts'
import type { KeyCount, TopOptions } from './top.ts'
import { spikes, trending } from './trending.ts'
import type { SpikeOptions, SpikingKey, TrendingKey, TrendingOptions } from './trending.ts'

export interface WaitOptions<K> {
  /** Wait for the count of this key only. Otherwise a row that is locked holds up the answer, whichever key it is of. */
  key?: K | undefined
  /** Default 10 000. */
  timeoutMs?: number | undefined
  /** Ends the wait with the signal's reason. */
  signal?: AbortSignal | undefined
}

/** A stored count and the version that it belongs to. */
export interface VersionedCount<N extends number | bigint = number> {
  count: N
  /** As in `AppliedChanges`. */
  version: bigint
}

/** A threshold that the stored count of a key has reached. */
export interface Milestone<N extends number | bigint = number> {
  /** As text, in the server's spelling. */
  key: string
  threshold: N
  /** The stored count that reached it, or what a reconciliation has found; the same for several thresholds that the count jumped over. */
  value: N
  /** When that was recorded. */
  reachedAt: Date
}

/** Stands for a transaction: its id, as text. */
export type TransactionToken = string

const waitIntervalMs = 10
const lastTransactionId = 2n ** 64n - 1n

/** A counter by name: a handle that costs nothing and holds nothing. */
export class Counter<K extends Key = Key> {
  readonly name: string
  readonly #schema: string
  readonly #pool: Pool

  /** @internal Use `tally.counters.NAME` or `tally.counter(NAME)`. */
  constructor(name: string, schema: string, pool: Pool) {
    this.name = name
    this.#schema = schema
    this.#pool = pool
  }

  /**
   * Adds `delta` to the count of `key`, as part of the caller's transaction: it counts when that commits, exactly once, and
   * not at all when it rolls back. Only appends to the queue: waits for no one. Given a pool, it commits at once.
   *
   * For counters without a source; where there is one, its rows are what counts.
   *
   * @param delta a whole number, negative to take away
   * @returns the transaction's token, for `waitFor()`
   * @throws PgtallyError INVALID_EVENT (NULL or unsafe values, or the counter has a source), NOT_FOUND; errors of the server unwrapped
   *
   * @example
   * ```ts
   * await tally.counters.page_views.add(client, '/home')
   * ```
   */
  async add(executor: Executor, key: K, delta: number | bigint = 1): Promise<TransactionToken> {
    if (typeof delta === 'number' && !Number.isSafeInteger(delta)) {
      throw new PgtallyError('INVALID_EVENT', `Counter "${this.name}": the delta ${delta} is no whole number that a number can hold exactly. Use an integer, or a bigint.`)
    }
    const [row] = await query<{ token: string }>(
      executor,
      `select ${this.#schema}.add_event($1::text, $2::text, $3::text::bigint)::text as token`,
      [this.name, this.#keyText(key), String(delta)],
    )
    return row?.token ?? ''
  }

  /** @internal Use `tally.forward()`. */
  async receive(batch: ExportedBatch, options: ReceiveOptions): Promise<boolean> {
    return receiveBatch(this.#pool, this.#schema, this.name, batch, options)
  }

  /**
   * The stored count of `key`, and 0 where there is none. What has been committed in the last moments may not be in it yet.
   *
   * With `fresh`, the exact count: all that is committed, and what the caller's own transaction has written, if that is given as `executor`.
   *
   * @throws PgtallyError UNSAFE_COUNT when it is beyond 2^53 - 1 and `bigint` was not asked for; NOT_FOUND; for fresh counts also OTHER_CLUSTER (after a
   * restore), ISOLATION (in a REPEATABLE READ transaction that was more than a minute old when it first read a fresh count; on a standby that catches up, in a transaction of any age); errors of the server unwrapped
   *
   * @example
   * ```ts
   * await tally.counters.post_likes.get(42) // 1041
   * await tally.counters.post_likes.get(42, { fresh: true }) // { count: 1043, stored: 1041, carried: 0, pending: 2 }
   * ```
   */
  async get<const O extends ReadOptions = Record<never, never>>(key: K, options?: O): Promise<Count<O>> {
    const counts = await this.getMany([key], options)
    return counts.get(key) as Count<O>
  }

  /** As `get()` for several keys in one statement: the counts by the keys as they were given. */
  async getMany<const O extends ReadOptions = Record<never, never>>(keys: readonly K[], options?: O): Promise<Map<K, Count<O>>> {
    const { executor = this.#pool, fresh = false, bigint = false }: ReadOptions = options ?? {}
    const texts = keys.map((key) => this.#keyText(key))
    const parts = fresh ? (['stored', 'carried', 'pending'] as const) : (['count'] as const)
    const text = `select key, ${parts.map((part) => `${part}::text as ${part}`).join(', ')} from ${this.#schema}.${fresh ? 'get_fresh_counts' : 'get_counts'}($1::text, $2::text[])`
    const read = () => query<Row & { key: string }>(executor, text, [this.name, texts])
    const rows = await read().catch((error: unknown) => {
      // A standby that was just emptying a slot: the next snapshot is after that.
      if (executor === this.#pool && error instanceof PgtallyError && error.code === 'ISOLATION') return read()
      throw error
    })
    const found = new Map(rows.map((row) => [row.key, row]))
    const counts = new Map<K, unknown>()
    for (const [index, key] of keys.entries()) {
      const row = found.get(texts[index] ?? '')
      const numbers = parts.map((part) => BigInt((row?.[part] as string | undefined) ?? 0))
      const count = this.#number(key, numbers.reduce((sum, number) => sum + number), bigint)
      const [stored, carried, pending] = numbers.map((number) => this.#number(key, number, bigint))
      counts.set(key, fresh ? { count, stored, carried, pending } : count)
    }
    return counts as Map<K, Count<O>>
  }

  /**
   * The stored count of `key` as `get()` gives it, with the version that it belongs to, both of one snapshot: it includes every change that workers have told with this version or an
   * earlier one, and none that they have told with a later one. So of two counts of a key, told or read, the one with the greater version is the newer.
   *
   * @throws PgtallyError UNSAFE_COUNT, NOT_FOUND; errors of the server unwrapped
   *
   * @example
   * ```ts
   * await tally.counters.post_likes.getVersioned(42) // { count: 1041, version: 7n }
   * ```
   */
  async getVersioned<const O extends CountOptions = Record<never, never>>(key: K, options?: O): Promise<VersionedCount<NumberOf<O>>> {
    const { executor = this.#pool, bigint = false }: CountOptions = options ?? {}
    // One statement has one snapshot, which both functions read in: they are STABLE.
    const [row] = await query<{ version: string; count: string | null }>(
      executor,
      `select ${this.#schema}.counter_version($1::text)::text as version, (select c.count::text from ${this.#schema}.get_counts($1::text, array[$2::text]) c) as count`,
      [this.name, this.#keyText(key)],
    )
    const count = this.#number(key, BigInt(row?.count ?? 0), bigint) as NumberOf<O>
    return { count, version: BigInt(row?.version ?? 0) }
  }

  /**
   * The milestones that `key` has reached, or every key, in the order in which they were recorded. One is recorded once for ever, also when the count falls below it again.
   * None for a counter whose definition has no `milestones`.
   *
   * @throws PgtallyError UNSAFE_COUNT when a threshold or value is beyond 2^53 - 1 and `bigint` was not asked for; NOT_FOUND
   *
   * @example
   * ```ts
   * await tally.counters.post_likes.milestones(42) // [{ key: '42', threshold: 100, value: 100, reachedAt: 2026-01-31T10:00:00.000Z }]
   * ```
   */
  async milestones<const O extends CountOptions = Record<never, never>>(key?: K, options?: O): Promise<Milestone<NumberOf<O>>[]> {
    const { executor = this.#pool, bigint = false }: CountOptions = options ?? {}
    const rows = await query<{ key: string; threshold: string; value: string; ms: string }>(
      executor,
      `select key, threshold::text as threshold, value::text as value, (extract(epoch from reached_at) * 1000)::text as ms from ${this.#schema}.get_milestones($1::text, $2::text)`,
      [this.name, key === undefined ? null : this.#keyText(key)],
    )
    const milestones = rows.map(({ key: of, threshold, value, ms }) => {
      const number = (text: string) => this.#number(of, BigInt(text), bigint)
      return { key: of, threshold: number(threshold), value: number(value), reachedAt: new Date(Number(ms)) }
    })
    return milestones as Milestone<NumberOf<O>>[]
  }

  /**
   * The count of `key` by time: what happened in each bucket, without gaps, in ascending order. It begins with the first bucket that is retained, and has at most
   * 10,000. It includes what has been applied, and is as exact as the count: with `source.time` what is deleted is taken back
   * from the bucket in which it was counted.
   *
   * @throws PgtallyError NOT_APPLICABLE (no `buckets` of which that width can be made), INVALID_ARGUMENT, INVALID_DEFINITION (a width or a time that will not do), UNSAFE_COUNT, NOT_FOUND;
   * errors of the server unwrapped
   *
   * @example
   * ```ts
   * // In the definition: buckets: [{ width: '1 hour', retain: '30 days' }]
   * await tally.counters.post_likes.series(42, { width: '1 day', from: new Date('2026-01-30'), to: new Date('2026-02-01') })
   * // [{ start: 2026-01-30T00:00:00.000Z, count: 17 }, { start: 2026-01-31T00:00:00.000Z, count: 0 }]
   * ```
   */
  async series<const O extends SeriesOptions>(key: K, options: O): Promise<Bucket<NumberOf<O>>[]> {
    return (await series(this.#reading(options), this.#keyText(key), options)) as Bucket<NumberOf<O>>[]
  }

  /**
   * The keys with the highest counts, highest first. Of all time, where the definition has `ranking`: the stored counts, as `get()` gives them. Of a window, where it
   * has `buckets`: of what happened in the buckets that begin in it, so that the smaller they are, the more exactly the window is kept to.
   *
   * @throws PgtallyError NOT_APPLICABLE (no `ranking`; no `buckets` for the window; `where` without a target of yours), INVALID_ARGUMENT, INVALID_DEFINITION (a limit, window or
   * column that will not do), UNSAFE_COUNT, NOT_FOUND; errors of the server unwrapped
   *
   * @example
   * ```ts
   * // In the definition: ranking: true, buckets: [{ width: '1 hour', retain: '30 days' }]
   * await tally.counters.post_likes.top({ limit: 3 }) // [{ key: '42', count: 1041 }, { key: '7', count: 870 }, { key: '8', count: 12 }]
   * await tally.counters.post_likes.top({ window: '24 hours', where: { category_id: 7 } }) // [{ key: '7', count: 31 }]
   * ```
   */
  async top<const O extends TopOptions = Record<never, never>>(options?: O): Promise<KeyCount<NumberOf<O>>[]> {
    return (await top(this.#reading(options), options ?? {})) as KeyCount<NumberOf<O>>[]
  }

  /**
   * The keys that are on the rise, highest score first.
   * - By `halfLife`, one of those in the definition's `trending`: the count in which each event weighs half after each half-life. (Forward decay, Cormode, Shkapenyuk, Srivastava and Xu, 2009:
   *   nothing is to be recomputed as time passes.)
   * - Against a `baseline`, of the definition's `buckets`: how far the count of the last window is above what the windows before let expect.
   *
   * @throws PgtallyError NOT_APPLICABLE (no such half-life or buckets in the definition; `where` without a target of yours), INVALID_ARGUMENT, INVALID_DEFINITION (a limit, window or column
   * that will not do), UNSAFE_COUNT, NOT_FOUND; errors of the server unwrapped
   *
   * @example
   * ```ts
   * // In the definition: trending: [{ halfLife: '6 hours' }], buckets: [{ width: '1 hour', retain: '30 days' }]
   * await tally.counters.post_likes.trending() // [{ key: '8', score: 11.2 }, { key: '42', score: 7.9 }]
   * await tally.counters.post_likes.trending({ baseline: { window: '1 hour' } }) // [{ key: '8', score: 8.5, count: 12, expected: 1 }]
   * ```
   */
  async trending(options: SpikeOptions): Promise<SpikingKey[]>
  async trending(options?: TrendingOptions): Promise<TrendingKey[]>
  async trending(options: TrendingOptions | SpikeOptions = {}): Promise<TrendingKey[]> {
    const place = this.#reading(options)
    if (options.baseline === undefined) return trending(place, options)
    if (options.halfLife !== undefined) throw new PgtallyError('INVALID_ARGUMENT', 'What is trending is found by halfLife or against a baseline: give one of them.')
    return spikes(place, options)
  }

  /**
   * Resolves when the stored count includes all that a transaction has written. Workers have to run for that. (A crash of the server may take
   * the last batches back; they are applied again.) On a hot standby it is the stored count there, which is a moment behind the primary's.
   *
   * @param token from `add()`, or from `tally.transactionToken()` inside the transaction
   * @throws PgtallyError TIMEOUT, INVALID_ARGUMENT (no token), NOT_FOUND, OTHER_CLUSTER, ISOLATION (on a standby where the default is not READ COMMITTED); the signal's reason
   *
   * @example
   * ```ts
   * const token = await tally.transactionToken(client)
   * await client.query('commit')
   * await tally.counters.post_likes.waitFor(token, { key: 42 })
   * ```
   */
  async waitFor(token: TransactionToken, { key, timeoutMs = 10_000, signal }: WaitOptions<K> = {}): Promise<void> {
    // Callers without types pass anything.
    if (typeof token !== 'string' || !/^[1-9]\d{0,19}$/.test(token) || BigInt(token) > lastTransactionId) {
      throw new PgtallyError('INVALID_ARGUMENT', `"${String(token)}" is no transaction token. Take it from add() or transactionToken().`)
    }
    if (!(timeoutMs >= 0)) throw new PgtallyError('INVALID_ARGUMENT', `timeoutMs is ${timeoutMs}. Use a number of milliseconds, 0 or more.`)
    const deadline = performance.now() + timeoutMs
    for (;;) {
      signal?.throwIfAborted()
      const [row] = await query<{ stored: string }>(
        this.#pool,
        `select ${this.#schema}.is_stored($1::text, $2::text::xid8, $3::text)::text as stored`,
        [this.name, token, key === undefined ? null : this.#keyText(key)],
      )
      if (row?.stored === 'true') return
      if (performance.now() > deadline) {
        throw new PgtallyError('TIMEOUT', `Counter "${this.name}": the stored count did not include transaction ${token} within ${timeoutMs} ms. Is it committed, and does a worker run?`)
      }
      // When it is aborted, the signal itself says why.
      await sleep(waitIntervalMs, undefined, { signal }).catch(() => {})
    }
  }

  /**
   * Compares, key by key, the rows of the source with `stored + carried + pending`, each range of keys in one snapshot, while
   * writers and workers go on.
   *
   * @throws PgtallyError NOT_FOUND, NOT_APPLICABLE (the counter has no source), INVALID_DEFINITION (source or target was dropped), OTHER_CLUSTER
   *
   * @example
   * ```ts
   * const { driftingKeys, drifts } = await tally.counters.post_likes.audit()
   * ```
   */
  async audit({ keys, ...options }: AuditOptions<K> = {}): Promise<Measurement> {
    return traced({ name: `audit ${this.name}`, attributes: { 'pgtally.counter': this.name } }, async (say) => {
      const measurement = await audit(this.#place, keys?.map((key) => this.#keyText(key)), options)
      say({ 'pgtally.audit.checked_keys': measurement.checkedKeys, 'pgtally.audit.drifting_keys': measurement.driftingKeys })
      return measurement
    })
  }

  /**
   * Audits and corrects each drift it finds, by a delta of that size, which workers add like any other; counts are never overwritten. Range by
   * range, each in one transaction: interrupted at any point, what is done is right, and the next call goes on from there. Writers and workers go on.
   *
   * @returns what was corrected: the drifts as they were before
   * @throws PgtallyError as `audit()`
   */
  async reconcile({ keys, ...options }: ReconcileOptions<K> = {}): Promise<Measurement> {
    return reconcile(this.#place, keys?.map((key) => this.#keyText(key)), options)
  }

  /**
   * Sets the count of `key` back to 0: what has been added so far is taken back, what is added from now on counts. For counters without a source.
   *
   * @throws PgtallyError NOT_FOUND, NOT_APPLICABLE (it counts the rows of a source), OTHER_CLUSTER
   */
  async reset(key: K): Promise<void> {
    await reset(this.#place, [this.#keyText(key)])
  }

  /** `reset()` for every key, in ranges, each at its own instant. */
  async resetAll(): Promise<void> {
    await reset(this.#place, undefined)
  }

  get #place() {
    return { pool: this.#pool, schema: this.#schema, name: this.name }
  }

  #reading({ executor = this.#pool }: { executor?: Executor | undefined } = {}) {
    return { executor, schema: this.#schema, name: this.name }
  }

  #number(key: Key, count: bigint, bigint: boolean): number | bigint {
    return bigint ? count : safeNumber(this.name, key, count)
  }

  #keyText(key: Key): string {
    // Callers without types pass null and undefined, too.
    const valid = typeof key === 'string' || typeof key === 'bigint' || Number.isSafeInteger(key)
    if (!valid) {
      throw new PgtallyError('INVALID_EVENT', `Counter "${this.name}": ${String(key)} cannot be a key. Use a string, a bigint or a whole number.`)
    }
    return String(key)
  }
}
