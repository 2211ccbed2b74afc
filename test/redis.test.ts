import { beforeAll, beforeEach, describe, expect, test } from 'vitest'

import type { AppliedChanges, Tally } from '../src/index.ts'
import { createRedisCache, type RedisCache, type RedisCacheOptions, type RedisClient } from '../src/redis.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, createBlog, installed, value } from './support/fixtures.ts'
import { findRedisServer, redisMissing, startTestRedis, type TestRedis } from './support/redis.ts'
import { beside, expectExact, seed, storm } from './support/storm.ts'

const program = await findRedisServer()

let db: TestDatabase
let tally: Tally
let redis: TestRedis

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  if (program === undefined) return db.drop
  redis = await startTestRedis(program)
  await tally.createCounter('views', { keyType: 'text' })
  return async () => {
    await redis[Symbol.asyncDispose]()
    await db.drop()
  }
})

beforeEach((context) => {
  if (program === undefined) context.skip(redisMissing)
})

/** A tally that counts what is read from PostgreSQL, and may hold it up once it is read. */
function watched() {
  let reads = 0
  let held: Promise<unknown> | undefined
  const counter = (name: string) => {
    const real = tally.counter(name)
    const getVersioned = async (...args: Parameters<typeof real.getVersioned>) => {
      reads++
      const read = await real.getVersioned(...args)
      await held
      return read
    }
    return new Proxy(real, { get: (target, property) => (property === 'getVersioned' ? getVersioned : Reflect.get(target, property, target)) })
  }
  return { tally: { schema: 'pgtally', counter } as RedisCacheOptions['tally'], reads: () => reads, hold: (until: Promise<unknown>) => (held = until) }
}

/** The same client, which counts what it is to send. */
function counting(client: RedisClient) {
  let sent = 0
  const counted: RedisClient = {
    get isReady() {
      return client.isReady
    },
    sendCommand: (...args) => {
      sent++
      return client.sendCommand(...args)
    },
  }
  return { redis: counted, sent: () => sent }
}

/** A cache with a connection of its own, as in a process of its own. */
async function createCache(options: Partial<RedisCacheOptions> = {}) {
  const client = await redis.connect()
  const watch = watched()
  const messages: string[] = []
  const say = (details: object, message: string) => void messages.push(`${message} ${JSON.stringify(details)}`)
  const cache = createRedisCache({ redis: client, tally: watch.tally, ttlMs: 60_000, timeoutMs: 5000, logger: { info: say, warn: say }, ...options })
  return { cache, client, messages, ...watch }
}

const applied = (key: string, count: number | bigint, version: bigint): AppliedChanges => ({ counter: 'views', version, changes: [{ key, value: count }] })

let keys = 0
const newKey = () => `/page/${++keys}`

/** Adds and applies, without telling anybody. */
async function view(key: string, count = 1): Promise<void> {
  await tally.counter('views').add(db.pool, key, count)
  await applyAll(db.pool, 'views')
}

describe('get', () => {
  test('reads from PostgreSQL once, and from then on from Redis until the time is over', async () => {
    const { cache, client, reads } = await createCache()
    const key = newKey()
    await view(key, 7)
    expect(await cache.get('views', key)).toBe(7)
    expect(await cache.get('views', key)).toBe(7)
    expect(reads()).toBe(1)
    expect(await client.get(`pgtally:views:${key}`)).toMatch(/^\d+:7$/)
    const ttl = await client.pTTL(`pgtally:views:${key}`)
    expect(ttl).toBeGreaterThan(0)
    expect(ttl).toBeLessThanOrEqual(60_000)
    const short = await createCache({ ttlMs: 1, prefix: 'short:' })
    await view(key)
    await short.cache.get('views', key)
    await waitFor(async () => (await client.exists(`short:views:${key}`)) === 0, { what: 'the end of its time' })
    expect(await short.cache.get('views', key)).toBe(8)
  })

  test('of what is not there is 0, and kept as well', async () => {
    const { cache, reads } = await createCache()
    expect([await cache.get('views', newKey()), reads()]).toEqual([0, 1])
    expect([await cache.get('views', `/page/${keys}`), reads()]).toEqual([0, 1])
  })

  test('errors are those of a read', async () => {
    const { cache } = await createCache()
    await expect(cache.get('no such counter', 1)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await cache.onApplied(applied('huge', 2n ** 53n, 1n))
    await expect(cache.get('views', 'huge')).rejects.toMatchObject({ code: 'UNSAFE_COUNT' })
  })

  test('counters and keys with colons are not taken for one another', async () => {
    const { cache } = await createCache()
    await tally.createCounter('a', { keyType: 'text' })
    await tally.createCounter('a:b', { keyType: 'text' })
    await tally.counter('a').add(db.pool, 'b:c', 1)
    await tally.counter('a:b').add(db.pool, 'c', 2)
    await tally.drain()
    expect([await cache.get('a', 'b:c'), await cache.get('a:b', 'c')]).toEqual([1, 2])
  })

  test('a herd in one process reads once', async () => {
    const { redis: client, sent } = counting(await redis.connect())
    const { cache, reads } = await createCache({ redis: client })
    const key = newKey()
    await view(key, 3)
    expect(new Set(await Promise.all(Array.from({ length: 100 }, () => cache.get('views', key))))).toEqual(new Set([3]))
    expect(reads()).toBe(1)
    // GET, SET, and EVALSHA, which may be followed by EVAL.
    expect(sent()).toBeLessThanOrEqual(4)
  })

  test('a herd of processes reads once; if the one that reads fails, the others do', async () => {
    const caches = await Promise.all(Array.from({ length: 5 }, () => createCache()))
    const key = newKey()
    await view(key, 3)
    const reads = () => caches.reduce((sum, each) => sum + each.reads(), 0)
    expect(await Promise.all(caches.map(({ cache }) => cache.get('views', key)))).toEqual([3, 3, 3, 3, 3])
    expect(reads()).toBe(1)
    // Its process died.
    const [first] = caches
    const another = newKey()
    await first?.client.set(`pgtally:views/${another}`, '')
    const impatient = await createCache({ timeoutMs: 50 })
    expect(await impatient.cache.get('views', another)).toBe(0)
    expect(impatient.messages).toEqual([])
  })
})

describe('an older count', () => {
  test('never replaces a newer one, however large the versions are', async () => {
    const { cache, client, reads } = await createCache()
    const versions = [1n, 9n, 10n, 99n, 100n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 53n + 2n, 2n ** 63n - 1n]
    for (const [index, version] of versions.entries()) {
      for (const older of versions.slice(0, index + 1).toReversed()) {
        const key = newKey()
        await cache.onApplied(applied(key, 1, older))
        await cache.onApplied(applied(key, 2, version))
        await cache.onApplied(applied(key, 3, older))
        expect([version, older, await cache.get('views', key)]).toEqual([version, older, version === older ? 1 : 2])
      }
    }
    expect(reads()).toBe(0)
    const key = newKey()
    await cache.onApplied(applied(key, -4, 2n))
    expect([await cache.get('views', key), await client.get(`pgtally:views:${key}`)]).toEqual([-4, '2:-4'])
  })

  test('that was read before a commit does not replace what the worker has written after it', async () => {
    const { cache, hold, reads } = await createCache()
    const key = newKey()
    await view(key, 41)
    const gate = Promise.withResolvers<void>()
    hold(gate.promise)
    const reading = cache.get('views', key)
    await waitFor(async () => reads() === 1, { what: 'the read' })
    // It has read 41, and comes to write it only when 42 was written.
    const writing = await createCache()
    {
      await using worker = tally.worker({ onApplied: writing.cache.onApplied })
      await tally.counter('views').add(db.pool, key)
      await waitFor(async () => (await writing.cache.get('views', key)) === 42, { what: 'the new count' })
      await worker.stop()
    }
    gate.resolve()
    expect(await reading).toBe(41)
    expect(await cache.get('views', key)).toBe(42)
    expect(writing.reads() + reads()).toBeLessThanOrEqual(2)
  })

  test('is replaced by one that was read after it', async () => {
    const { cache, client } = await createCache()
    const key = newKey()
    await view(key, 5)
    await cache.get('views', key)
    const entry = await client.get(`pgtally:views:${key}`)
    await cache.onApplied(applied(key, 4, BigInt(entry?.replace(/:.*/, '') ?? 0) - 1n))
    expect(await client.get(`pgtally:views:${key}`)).toBe(entry)
  })
})

test('many keys are written in a few calls', async () => {
  const { cache, client } = await createCache()
  const calls = async () => Number(/cmdstat_evalsha:calls=(\d+)/.exec(await client.info('commandstats'))?.[1] ?? 0)
  const before = await calls()
  await cache.onApplied({ counter: 'views', version: 3n, changes: Array.from({ length: 2500 }, (_, index) => ({ key: `many ${index}`, value: index })) })
  expect((await calls()) - before).toBeLessThanOrEqual(4)
  expect(await Promise.all([0, 999, 1000, 2499].map((index) => client.get(`pgtally:views:many ${index}`)))).toEqual(['3:0', '3:999', '3:1000', '3:2499'])
})

test('a Redis that has forgotten the script is given it again', async () => {
  const { cache, client, messages } = await createCache()
  const key = newKey()
  await cache.onApplied(applied(key, 1, 1n))
  await client.scriptFlush()
  await cache.onApplied(applied(key, 2, 2n))
  expect(await client.get(`pgtally:views:${key}`)).toBe('2:2')
  expect(messages).toEqual([])
})

describe('without Redis', () => {
  const own = async () => startTestRedis(program ?? '')

  test('that was stopped, counts come from PostgreSQL and nothing waits; it is used again when it is back', async () => {
    await using server = await own()
    const client = await server.connect()
    const { cache, messages, reads } = await createCache({ redis: client, timeoutMs: 5000 })
    const key = newKey()
    await view(key, 2)
    expect(await cache.get('views', key)).toBe(2)
    await server.stop()
    await waitFor(async () => !client.isReady, { what: 'the end of the connection' })
    await view(key)
    for (let times = 0; times < 3; times++) {
      expect(await cache.get('views', key)).toBe(3)
      await cache.onApplied(applied(key, 3, 1n))
    }
    expect(reads()).toBe(4)
    expect(messages).toEqual([expect.stringMatching(/Redis is out of reach.*not connected/)])
    await server.start()
    await waitFor(async () => (await cache.get('views', key)) === 3 && (await client.exists(`pgtally:views:${key}`)) === 1, { what: 'Redis to be used' })
    const before = reads()
    expect(await cache.get('views', key)).toBe(3)
    expect(reads()).toBe(before)
    expect(messages).toEqual([expect.stringContaining('Redis is out of reach'), expect.stringContaining('Redis is back')])
  })

  test('that does not answer, one call waits for it and the next do not', async () => {
    await using server = await own()
    const client = await server.connect()
    const { redis: counted, sent } = counting(client)
    const { cache, messages } = await createCache({ redis: counted, timeoutMs: 100 })
    const key = newKey()
    await view(key, 2)
    await cache.get('views', key)
    server.freeze()
    await view(key)
    const before = sent()
    const since = performance.now()
    for (let times = 0; times < 3; times++) expect(await cache.get('views', key)).toBe(3)
    await cache.onApplied(applied(key, 3, 2n ** 40n))
    // A hundred times as long as it may wait.
    expect(performance.now() - since).toBeLessThan(10_000)
    // Otherwise it took so long that the pause was over.
    expect(sent() - before).toBeLessThanOrEqual(2)
    expect(messages).toEqual([expect.stringMatching(/Redis is out of reach.*no answer within 100 ms/)])
    server.thaw()
    await waitFor(async () => {
      await cache.onApplied(applied(key, 3, 2n ** 40n))
      return (await client.get(`pgtally:views:${key}`)) === `${2n ** 40n}:3`
    }, { what: 'Redis to be used' })
    expect(messages).toEqual([expect.stringContaining('out of reach'), expect.stringContaining('Redis is back')])
    expect(await cache.get('views', key)).toBe(3)
  })

  test('that refuses to write, or was never connected', async () => {
    await using server = await own()
    const client = await server.connect()
    const { cache, messages } = await createCache({ redis: client })
    await client.configSet('maxmemory', '1')
    const key = newKey()
    await view(key, 2)
    expect(await cache.get('views', key)).toBe(2)
    expect(await cache.get('views', key)).toBe(2)
    expect(messages).toEqual([expect.stringContaining('OOM')])
    const never = await createCache({ redis: { isReady: false, sendCommand: () => expect.unreachable() as never } })
    expect(await never.cache.get('views', key)).toBe(2)
    await never.cache.onApplied(applied(key, 3, 1n))
    expect(never.messages).toEqual([expect.stringContaining('not connected')])
  })
})

test(`with writers, workers and readers at work, Redis stopped, frozen and started again meanwhile (seed ${seed})`, async () => {
  const posts = 10
  const blog = await createBlog(db, tally, { posts })
  const random = new Random(seed)
  await using server = await startTestRedis(program ?? '')
  const caches: RedisCache[] = []
  for (let n = 0; n < 4; n++) caches.push((await createCache({ redis: await server.connect(), ttlMs: 5000, timeoutMs: 100 })).cache)
  const client = await server.connect()
  const entries = async () => {
    const all = await client.mGet(Array.from({ length: posts }, (_, index) => `pgtally:${blog.counter}:${index + 1}`))
    return all.map((entry) => entry?.split(':').map(BigInt) as [version: bigint, count: bigint] | undefined)
  }
  await using running = new AsyncDisposableStack()
  for (const cache of caches.slice(0, 2)) running.use(tally.worker({ onApplied: cache.onApplied, pollIntervalMs: 5 }))
  const writing = running.use(storm(db, blog, { posts, writers: 2 }))
  let gets = 0
  for (const cache of caches) {
    running.use(
      beside(async () => {
        expect(await cache.get(blog.counter, random.upTo(posts))).toBeGreaterThanOrEqual(0)
        gets++
      }),
    )
  }
  // Without a gap in which an entry could have gone.
  const seen: bigint[] = []
  const wrong: string[] = []
  const look = async () => {
    for (const [index, entry] of (await entries()).entries()) {
      if (entry === undefined) {
        // It has expired, or Redis was restarted. What comes next was read or written at another time.
        delete seen[index]
        continue
      }
      if (entry[0] < (seen[index] ?? 0n)) wrong.push(`post ${index + 1}: version ${entry[0]} after ${seen[index]}`)
      seen[index] = entry[0]
    }
  }
  const goOn = async (what: string) => {
    const [gotten, written] = [gets, writing.rounds]
    await waitFor(async () => {
      await look()
      return gets > gotten + 100 && writing.rounds > written + 20
    }, { what })
  }
  await goOn('reads and likes')
  for (let round = 0; round < 2; round++) {
    await server.stop()
    seen.length = 0
    const [gotten, written] = [gets, writing.rounds]
    await waitFor(async () => gets > gotten + 20 && writing.rounds > written + 20, { what: 'reads and likes without Redis' })
    await server.start()
    await waitFor(async () => client.isReady, { what: 'the connection' })
    await goOn('reads and likes with Redis again')
    server.freeze()
    const frozen = gets
    await waitFor(async () => gets > frozen + 20, { what: 'reads while Redis is frozen' })
    server.thaw()
    await goOn('reads and likes afterwards')
  }
  await writing.stop()
  await waitFor(async () => value<boolean>(db.pool, `select pending_events + carried_keys = 0 from pgtally.counter_status() where name = $1`, [blog.counter]), { what: 'all to be applied' })
  // What was not written while Redis was away has expired by then.
  await waitFor(
    async () => {
      await look()
      const cached = await entries()
      const { rows } = await db.pool.query<{ count: string }>(`select like_count as count from ${blog.posts} order by id`)
      return rows.every(({ count }, index) => cached[index] !== undefined && cached[index][1] === BigInt(count))
    },
    { what: 'all counts to be in Redis' },
  )
  expect(wrong).toEqual([])
  await running.disposeAsync()
  // Nothing comes afterwards that is older.
  const { rows } = await db.pool.query<{ count: string }>(`select like_count as count from ${blog.posts} order by id`)
  for (const [index, entry] of (await entries()).entries()) expect(entry?.[1] ?? 'expired').toSatisfy((count) => count === 'expired' || count === BigInt(rows[index]?.count ?? -1))
  await expectExact(db, tally, blog)
})

test('options that will not do', async () => {
  const client = await redis.connect()
  expect(() => createRedisCache({ redis: client, tally, ttlMs: 0 })).toThrow(/ttlMs/)
  expect(() => createRedisCache({ redis: client, tally, ttlMs: 1, timeoutMs: 0 })).toThrow(/timeoutMs/)
  expect(() => createRedisCache({ redis: {} as never, tally, ttlMs: 1 })).toThrow(/createClient/)
})
