import { PgtallyError } from '../errors.ts'
import { query } from '../executor.ts'
import type { Executor } from '../executor.ts'
import type { Key } from './definition.ts'

export interface ReadOptions {
  /** Read here instead of on the pool, for example inside a transaction. */
  executor?: Executor
}

/** A counter by name: a handle that costs nothing and holds nothing. */
export class Counter<K extends Key = Key> {
  readonly name: string
  readonly #schema: string
  readonly #executor: Executor

  /** @internal Use `tally.counters.NAME` or `tally.counter(NAME)`. */
  constructor(name: string, schema: string, executor: Executor) {
    this.name = name
    this.#schema = schema
    this.#executor = executor
  }

  /**
   * Adds `delta` to the count of `key`, as part of the caller's transaction: it counts when that commits, exactly once, and
   * not at all when it rolls back. Only appends to the queue: waits for no one. Given a pool, it commits at once.
   *
   * For counters without a source; where there is one, its rows are what counts.
   *
   * @param delta a whole number, negative to take away
   * @throws PgtallyError INVALID_EVENT (NULL or unsafe values, or the counter has a source), NOT_FOUND; errors of the server unwrapped
   *
   * @example
   * ```ts
   * await tally.counters.page_views.add(client, '/home')
   * ```
   */
  async add(executor: Executor, key: K, delta: number | bigint = 1): Promise<void> {
    if (typeof delta === 'number' && !Number.isSafeInteger(delta)) {
      throw new PgtallyError('INVALID_EVENT', `Counter "${this.name}": the delta ${delta} is no whole number that a number can hold exactly. Use an integer, or a bigint.`)
    }
    await query(executor, `select ${this.#schema}.add_event($1::text, $2::text, $3::text::bigint)`, [this.name, keyText(this.name, key), String(delta)])
  }

  /**
   * The stored count of `key`, and 0 where there is none. What has been committed in the last moments may not be in it yet.
   *
   * @throws PgtallyError UNSAFE_COUNT when it is beyond 2^53 - 1 and `bigint` was not asked for; NOT_FOUND; errors of the server unwrapped
   */
  async get(key: K, options?: ReadOptions & { bigint?: false }): Promise<number>
  async get(key: K, options: ReadOptions & { bigint: true }): Promise<bigint>
  async get(key: K, options: ReadOptions & { bigint?: boolean } = {}): Promise<number | bigint> {
    const counts = await this.#read([key], options)
    const count = counts.get(key) ?? 0n
    return options.bigint ? count : this.#safe(key, count)
  }

  /** The stored counts of `keys`, in one statement, by the keys as they were given; 0 where there is none. */
  async getMany(keys: readonly K[], options?: ReadOptions & { bigint?: false }): Promise<Map<K, number>>
  async getMany(keys: readonly K[], options: ReadOptions & { bigint: true }): Promise<Map<K, bigint>>
  async getMany(keys: readonly K[], options: ReadOptions & { bigint?: boolean } = {}): Promise<Map<K, number> | Map<K, bigint>> {
    const counts = await this.#read(keys, options)
    if (options.bigint) return counts
    return new Map([...counts].map(([key, count]) => [key, this.#safe(key, count)]))
  }

  async #read(keys: readonly K[], { executor = this.#executor }: ReadOptions): Promise<Map<K, bigint>> {
    const texts = keys.map((key) => keyText(this.name, key))
    const rows = await query<{ key: string; count: string }>(
      executor,
      `select key, count::text as count from ${this.#schema}.get_counts($1::text, $2::text[])`,
      [this.name, texts],
    )
    const found = new Map(rows.map(({ key, count }) => [key, BigInt(count)]))
    return new Map(keys.map((key, index) => [key, found.get(texts[index] ?? '') ?? 0n]))
  }

  #safe(key: K, count: bigint): number {
    const number = Number(count)
    if (!Number.isSafeInteger(number)) {
      throw new PgtallyError('UNSAFE_COUNT', `Counter "${this.name}": the count of ${key}, ${count}, is beyond what a number can hold. Read it with { bigint: true }.`)
    }
    return number
  }
}

function keyText(counterName: string, key: Key): string {
  // Callers without types pass null and undefined, too.
  const valid = typeof key === 'string' || typeof key === 'bigint' || Number.isSafeInteger(key)
  if (!valid) {
    throw new PgtallyError('INVALID_EVENT', `Counter "${counterName}": ${String(key)} cannot be a key. Use a string, a bigint or a whole number.`)
  }
  return String(key)
}
