import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

import { z } from 'zod'

import { safeNumber } from './counters/count.ts'
import type { Key } from './counters/definition.ts'
import { PgtallyError } from './errors.ts'
import type { Tally } from './tally.ts'
import type { Logger } from './logger.ts'
import type { AppliedChanges } from './worker/reporter.ts'

/** A client of the package `redis` (node-redis), from version 5 on, for one server; by shape. */
export interface RedisClient {
  readonly isReady: boolean
  sendCommand(args: readonly string[], options?: { abortSignal?: AbortSignal }): Promise<unknown>
}

export interface RedisCacheOptions {
  /** Connected or on its way to it; it needs a listener for `error`. Never closed by pgtally. */
  redis: RedisClient
  /** Where counts are read that Redis does not have. */
  tally: Pick<Tally, 'counter' | 'schema'>
  /**
   * How long a count is kept, in ms. As long a cached count may be wrong after changes could not be written: Redis was out of reach, a worker crashed between its commit and the
   * write, or something was applied without `onApplied`.
   */
  ttlMs: number
  /** What the names of all keys in Redis begin with. Default: pgtally's schema and a colon. */
  prefix?: string | undefined
  /** How long an answer of Redis is waited for, and another process that is reading the same count from PostgreSQL, in ms. Default 250. */
  timeoutMs?: number | undefined
  /** Is told when Redis is out of reach, once, and when it is back. */
  logger?: Pick<Logger, 'info' | 'warn'> | undefined
}

const optionsSchema = z.object({
  prefix: z.string().optional(),
  ttlMs: z.int().min(1),
  timeoutMs: z.int().min(1).default(250),
})

// Each key's value is `version:count`. Versions are compared as texts, since the numbers of Lua are doubles: the longer is the greater, they have no leading zeros.
const script = `
local version = ARGV[2]
for i, key in ipairs(KEYS) do
  local present = redis.call('GET', key)
  local known = present and string.match(present, '^%d+') or ''
  if #known < #version or (#known == #version and known < version) then
    redis.call('SET', key, version .. ':' .. ARGV[i + 2], 'PX', ARGV[1])
  end
end`
const scriptHash = createHash('sha1').update(script).digest('hex')

/** Redis does nothing else while it runs the script. */
const keysPerCall = 1000
const pollIntervalMs = 10
/** For which Redis is not asked after it has failed. */
const pauseMs = 1000

/**
 * Counts in Redis: written by the workers, read through from PostgreSQL.
 *
 * Why an older count never replaces a newer one. Each entry has a version, and Redis replaces it only by one with a greater version. A version stands for one state of what is stored: that after
 * the commit that has told it, since commits that tell something come one after the other for each counter (they hold the consumer's lock). What a worker writes is the
 * count of that state. What a reader writes is a count and a version of one snapshot, which shows all commits up to that version and none that has told a later one: so it is also the count of the version's state.
 * Hence of two entries for a key the one with the greater version is the newer or equal, whoever wrote it and however long that took. A reader that has read 41 with version 6 and writes it when a worker has
 * written 42 with version 7 changes nothing; if it comes first, the worker's replaces it.
 *
 * Redis may be lost at any time. Then counts are read from PostgreSQL.
 */
export class RedisCache {
  readonly #redis: RedisClient
  readonly #tally: RedisCacheOptions['tally']
  readonly #prefix: string
  readonly #ttlMs: number
  readonly #timeoutMs: number
  readonly #logger: RedisCacheOptions['logger']
  readonly #reads = new Map<string, Promise<bigint>>()
  #isDown = false
  #pausedUntil = 0

  /** @internal Use `createRedisCache()`. */
  constructor({ redis, tally, logger, ...options }: RedisCacheOptions) {
    if (typeof redis?.sendCommand !== 'function' || typeof redis.isReady !== 'boolean') {
      throw new PgtallyError('INVALID_ARGUMENT', 'createRedisCache() needs a client of the package redis: createRedisCache({ redis: createClient({ url }), … }).')
    }
    const parsed = optionsSchema.safeParse(options)
    if (!parsed.success) throw new PgtallyError('INVALID_ARGUMENT', `Options of the Redis cache: ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
    const { prefix = `${tally.schema}:`, ttlMs, timeoutMs } = parsed.data
    this.#redis = redis
    this.#tally = tally
    this.#prefix = prefix
    this.#ttlMs = ttlMs
    this.#timeoutMs = timeoutMs
    this.#logger = logger
  }

  /** For the workers, as their option `onApplied`: writes what has changed. Never throws; waits for Redis as long as `timeoutMs` at most (for each thousand keys), and not at all while it is out of reach. */
  readonly onApplied = async ({ counter, version, changes }: AppliedChanges): Promise<void> => {
    for (let start = 0; start < changes.length; start += keysPerCall) {
      const some = changes.slice(start, start + keysPerCall)
      // What could not be written now would only wait for as many more timeouts.
      if (!(await this.#store(counter, version, some.map(({ key, value }) => [key, BigInt(value)]), this.#ttlMs))) return
    }
  }

  /**
   * The stored count of `key`, from Redis or else from PostgreSQL, and 0 where there is none. A moment behind, as every stored count is; `ttlMs` behind at most, where a change was not written to Redis.
   *
   * A count that Redis does not have is read from PostgreSQL by one process at a time, and there once; the others wait for it, `timeoutMs` at most.
   *
   * @param key as the server writes it: uuids in lower case
   * @throws PgtallyError UNSAFE_COUNT when it is beyond 2^53 - 1, NOT_FOUND; errors of the database unwrapped, of Redis none
   *
   * @example
   * ```ts
   * await cache.get('post_likes', 42) // 1041
   * ```
   */
  async get(counter: string, key: Key): Promise<number> {
    const name = this.#name(counter, key)
    let read = this.#reads.get(name)
    if (read === undefined) {
      read = this.#read(counter, key).finally(() => this.#reads.delete(name))
      this.#reads.set(name, read)
    }
    return safeNumber(counter, key, await read)
  }

  async #read(counter: string, key: Key): Promise<bigint> {
    const cached = await this.#cached(counter, key)
    if (typeof cached === 'bigint') return cached
    if (cached === 'missing') {
      // Whoever has the lock reads. It goes by itself, when those who wait for it have given up or what was read is gone.
      const lockMs = Math.min(this.#timeoutMs, this.#ttlMs)
      const locked = await this.#send(['SET', this.#name(counter, key, '/'), '', 'NX', 'PX', String(lockMs)])
      const found = locked === null ? await this.#readByAnother(counter, key) : undefined
      if (found !== undefined) return found
    }
    const readAt = performance.now()
    const { count, version } = await this.#tally.counter(counter).getVersioned(key, { bigint: true })
    // Not for longer than if it had been written at once.
    await this.#store(counter, version, [[String(key), count]], Math.ceil(this.#ttlMs - (performance.now() - readAt)))
    return count
  }

  async #readByAnother(counter: string, key: Key): Promise<bigint | undefined> {
    const deadline = performance.now() + this.#timeoutMs
    while (performance.now() < deadline) {
      await sleep(pollIntervalMs)
      const cached = await this.#cached(counter, key)
      if (typeof cached === 'bigint') return cached
      if (cached === undefined) return undefined
    }
    return undefined
  }

  /** Undefined when Redis is out of reach. */
  async #cached(counter: string, key: Key): Promise<bigint | 'missing' | undefined> {
    const entry = await this.#send(['GET', this.#name(counter, key)])
    if (entry === undefined) return undefined
    const [, count] = /^\d+:(-?\d+)$/.exec(String(entry)) ?? []
    return count === undefined ? 'missing' : BigInt(count)
  }

  /** Returns whether Redis has taken it in. */
  async #store(counter: string, version: bigint, counts: (readonly [key: string, count: bigint])[], ttlMs: number): Promise<boolean> {
    if (ttlMs < 1) return true
    const names = counts.map(([key]) => this.#name(counter, key))
    const rest = [String(names.length), ...names, String(ttlMs), String(version), ...counts.map(([, count]) => String(count))]
    const reply = await this.#send(['EVALSHA', scriptHash, ...rest], ['EVAL', script, ...rest])
    return reply !== undefined
  }

  /** The counter's part is without the character that ends it, so no two counters share a name. */
  #name(counter: string, key: Key, separator: ':' | '/' = ':'): string {
    return `${this.#prefix}${encodeURIComponent(counter)}${separator}${key}`
  }

  /**
   * The answer of Redis, in time, or undefined.
   *
   * @param unknownScript the command to send instead where Redis does not know the script yet
   */
  async #send(args: readonly string[], unknownScript?: readonly string[]): Promise<unknown> {
    if (performance.now() < this.#pausedUntil) return undefined
    // Otherwise the client would keep the command until it is connected.
    if (!this.#redis.isReady) return this.#fail('not connected')
    const ended = new AbortController()
    const { signal } = ended
    const send = async () => {
      try {
        return await this.#redis.sendCommand(args, { abortSignal: signal })
      } catch (error) {
        if (unknownScript === undefined || !(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error
        return await this.#redis.sendCommand(unknownScript, { abortSignal: signal })
      }
    }
    try {
      const tooLate = Symbol('too late')
      const reply = await Promise.race([send(), sleep(this.#timeoutMs, tooLate, { signal })])
      if (reply === tooLate) return this.#fail(`no answer within ${this.#timeoutMs} ms`)
      this.#recover()
      return reply ?? null
    } catch (error) {
      return this.#fail(error instanceof Error ? error.message : String(error))
    } finally {
      // The command as well, unless it has been sent.
      ended.abort()
    }
  }

  #fail(reason: string): undefined {
    if (!this.#isDown) this.#logger?.warn({ error: reason }, 'Redis is out of reach: counts are read from PostgreSQL')
    this.#isDown = true
    this.#pausedUntil = performance.now() + pauseMs
    return undefined
  }

  #recover(): void {
    if (this.#isDown) this.#logger?.info({}, 'Redis is back')
    this.#isDown = false
  }
}

/**
 * A cache of counts in Redis. Opens nothing by itself.
 *
 * @throws PgtallyError INVALID_ARGUMENT
 *
 * @example
 * ```ts
 * import { createClient } from 'redis'
 * import { createRedisCache } from 'pgtally/redis'
 *
 * const redis = createClient({ url: process.env.REDIS_URL ?? 'redis://localhost' }).on('error', () => {})
 * redis.connect().catch(() => {}) // not awaited: the cache goes without Redis, too
 * const cache = createRedisCache({ redis, tally, ttlMs: 60_000 })
 * const worker = tally.worker({ onApplied: cache.onApplied })
 * await cache.get('post_likes', 42)
 * ```
 */
export function createRedisCache(options: RedisCacheOptions): RedisCache {
  return new RedisCache(options)
}
