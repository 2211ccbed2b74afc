import { CamelCasePlugin, Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import { afterEach, beforeAll, describe, expect, test } from 'vitest'

import { createTally, defineCounters, type Executor, type Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like, outcome, stored, value } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  await tally.createCounter('views', { keyType: 'text' })
  await tally.createCounter('numbered', { keyType: 'bigint' })
  return db.drop
})

const views = () => tally.counter<string>('views')
let pages = 0
const newPage = () => `/page/${++pages}`

describe('add() is part of the caller\'s transaction', () => {
  const executors: [name: string, run: (work: (executor: Executor) => Promise<unknown>) => Promise<unknown>][] = [
    ['a client', async (work) => {
      const client = await db.connect()
      await client.query('begin')
      await work(client).catch(async (error: unknown) => {
        await client.query('rollback')
        throw error
      })
      await client.query('commit')
    }],
    ['Kysely', (work) => kysely().transaction().execute(work)],
    ['Kysely with CamelCasePlugin', (work) => kysely(new CamelCasePlugin()).transaction().execute(work)],
  ]
  const kysely = (...plugins: CamelCasePlugin[]) => new Kysely<unknown>({ dialect: new PostgresDialect({ pool: db.pool }), plugins })
  for (const [name, run] of executors) {
    test(`of ${name}: counts when it commits, and not when it rolls back`, async () => {
      const [kept, undone] = [newPage(), newPage()]
      await run(async (executor) => {
        await views().add(executor, kept)
        await views().add(executor, kept, 2n)
        await tally.drain()
        expect(await views().get(kept, { executor })).toBe(0)
      })
      await outcome(run(async (executor) => {
        await views().add(executor, undone)
        throw new Error('changed my mind')
      }))
      await tally.drain()
      await run(async (executor) => {
        expect(await views().getMany([kept, undone], { executor })).toEqual(new Map([[kept, 3], [undone, 0]]))
      })
    })

    test(`of ${name}: an error leaves the server's own code`, async () => {
      const error = await outcome(run((executor) => tally.counter('numbered').add(executor, 'no number')))
      expect(error).toMatchObject({ code: '22P02' })
    })
  }

  test('a pool or Kysely by itself commits at once', async () => {
    const page = newPage()
    await views().add(db.pool, page)
    await views().add(kysely(), page)
    await tally.drain()
    expect(await views().get(page)).toBe(2)
  })

  for (const code of ['40001', '40P01']) {
    test(`${code} is passed on as it is`, async () => {
      const failure = Object.assign(new Error('serialization'), { severity: 'ERROR', code })
      const executor = { query: () => Promise.reject(failure) }
      expect(await outcome(views().add(executor, 'x'))).toBe(failure)
    })
  }
})

describe('reading', () => {
  test('0 for what is not there; duplicates; bigint; too large for a number', async () => {
    const counter = tally.counter('numbered')
    await counter.add(db.pool, 1, 2 ** 53 - 1)
    await counter.add(db.pool, 2, -(2n ** 62n))
    await counter.add(db.pool, 9007199254740993n, 5)
    await tally.drain()
    expect(await counter.getMany([1, '1', 1, 3n, 9007199254740993n])).toEqual(new Map<string | number | bigint, number>([[1, 2 ** 53 - 1], ['1', 2 ** 53 - 1], [3n, 0], [9007199254740993n, 5]]))
    expect(await counter.getMany([])).toEqual(new Map())
    expect(await counter.get(2, { bigint: true })).toBe(-(2n ** 62n))
    expect(await counter.getMany([2, 4], { bigint: true })).toEqual(new Map([[2, -(2n ** 62n)], [4, 0n]]))
    await expect(counter.get(2)).rejects.toMatchObject({ code: 'UNSAFE_COUNT', message: expect.stringMatching(/"numbered".*bigint: true/) })
    await expect(counter.getMany([1, 2])).rejects.toMatchObject({ code: 'UNSAFE_COUNT' })
  })

  test('keys as they were given, in whatever form', async () => {
    await tally.createCounter('by uuid', { keyType: 'uuid' })
    const counter = tally.counter<string>('by uuid')
    const uuid = '9C2F4CFC-6B0A-4A5C-9D4A-0D4CBD5B7A11'
    await counter.add(db.pool, uuid)
    await counter.add(db.pool, uuid.toLowerCase())
    await tally.drain()
    expect(await counter.getMany([uuid, uuid.toLowerCase(), `{${uuid}}`])).toEqual(new Map([[uuid, 2], [uuid.toLowerCase(), 2], [`{${uuid}}`, 2]]))
  })
})

test('defineCounters() and install() make the counters, again and again', async () => {
  await db.pool.query('create table articles (id int primary key, hearts int not null default 0); create table hearts (article_id int); insert into articles values (1); insert into hearts values (1)')
  interface DB {
    articles: { id: number; hearts: number }
    hearts: { article_id: number }
  }
  const counters = defineCounters<DB>()({ hearts: { source: { table: 'hearts', key: 'article_id' }, target: { table: 'articles', key: 'id', column: 'hearts' } } })
  const own = createTally({ pool: db.pool, counters })
  await own.install()
  await own.install()
  await own.drain()
  expect(await own.counters.hearts.get(1)).toBe(1)
})

test('drain() says what it could not apply', async () => {
  const [sound, broken, locked] = [await createBlog(db, tally), await createBlog(db, tally), await createBlog(db, tally)]
  const holder = await db.connect()
  await holder.query(`begin; select from ${locked.posts} where id = 1 for no key update`)
  await db.pool.query(`alter table ${broken.posts} drop like_count`)
  for (const blog of [sound, broken, locked]) await like(db.pool, blog, 1)
  const { events, failed } = await tally.drain({ timeoutMs: 0 })
  expect(events).toBe(2)
  expect(failed).toMatchObject([
    { counter: broken.counter, error: expect.stringContaining('like_count') },
    { counter: locked.counter, error: expect.stringContaining('locked') },
  ])
  expect(await stored(db.pool, sound)).toEqual({ 1: 1 })
  await holder.query('rollback')
  await tally.dropCounter(broken.counter)
  expect(await tally.drain()).toEqual({ events: 0, failed: [] })
  expect(await stored(db.pool, locked)).toEqual({ 1: 1 })
})

test('status() is plain data', async () => {
  const blog = await createBlog(db, tally)
  const before = new Date()
  await like(db.pool, blog, 1)
  await tally.drain()
  const { counters, queues, oldestTransactionSeconds } = await tally.status()
  const counter = counters.find(({ name }) => name === blog.counter)
  expect(counter).toMatchObject({ queue: blog.counter, source: `public.${blog.likes}`, target: `public.${blog.posts}.like_count`, pendingEvents: 0, lagSeconds: 0, events: 1, batches: 1, droppedEvents: 0, carriedKeys: 0, lastError: null })
  expect(new Date(counter?.lastBatchAt ?? 0).getTime()).toBeGreaterThanOrEqual(before.getTime() - 1000)
  expect(queues.find(({ name }) => name === blog.counter)).toMatchObject({ keyType: 'bigint', rotationPeriodSeconds: 300, consumers: [blog.counter], slotBytes: [expect.any(Number), expect.any(Number), expect.any(Number)] })
  expect(oldestTransactionSeconds === null || typeof oldestTransactionSeconds === 'number').toBe(true)
})

describe('with the user\'s own type parsers', () => {
  const types = { bool: 16, int8: 20, int2: 21, int4: 23, text: 25, json: 114, float8: 701, timestamptz: 1184, numeric: 1700 } as const
  const original = Object.values(types).map((oid) => [oid, pg.types.getTypeParser(oid)] as const)
  afterEach(() => {
    for (const [oid, parser] of original) pg.types.setTypeParser(oid, parser)
  })

  for (const [name, parse] of [['BigInt', BigInt], ['an object', (text: string) => ({ text })]] as const) {
    test(`for all numbers: ${name}`, async () => {
      const blog = await createBlog(db, tally)
      for (const oid of [types.int8, types.int2, types.int4, types.float8, types.numeric]) pg.types.setTypeParser(oid, parse)
      await tally.install()
      await like(db.pool, blog, 1, 3)
      await views().add(db.pool, '/parsed')
      const handle = tally.counter(blog.counter)
      expect(await handle.get(1, { fresh: true })).toEqual({ count: 3, stored: 0, carried: 0, pending: 3 })
      expect(await tally.drain()).toEqual({ events: 2, failed: [] })
      expect(await handle.get(1)).toBe(3)
      expect(await handle.get(1, { fresh: true, bigint: true })).toEqual({ count: 3n, stored: 3n, carried: 0n, pending: 0n })
      expect(await handle.audit()).toMatchObject({ checkedKeys: 10, driftingKeys: 0 })
      expect(await handle.audit({ against: 'id', sample: 100, keys: undefined })).toMatchObject({ driftingKeys: 10, drifts: expect.arrayContaining([{ key: '2', source: 2, stored: 0, carried: 0, pending: 0, drift: 2 }]) })
      expect(await handle.reconcile()).toMatchObject({ checkedKeys: 10, driftingKeys: 0 })
      const token = await views().add(db.pool, '/parsed')
      expect(token).toMatch(/^\d+$/)
      expect(await tally.transactionToken(db.pool)).toMatch(/^\d+$/)
      await tally.drain()
      await views().waitFor(token, { key: '/parsed', timeoutMs: 0 })
      await views().reset('/parsed')
      expect(await views().get('/parsed', { fresh: true })).toMatchObject({ count: 0 })
      expect((await tally.status()).counters.find((counter) => counter.name === blog.counter)).toMatchObject({ events: 1 })
      await like(db.pool, blog, 1)
      await using worker = tally.worker()
      await waitFor(async () => (await handle.get(1)) === 4, { what: 'the worker' })
      await worker.stop()
    })
  }
})

test('nothing of a session is needed: transactions may each be on another connection', async () => {
  const page = newPage()
  const pool = new pg.Pool({ connectionString: db.connectionString, max: 5, maxUses: 1 })
  const own = createTally({ pool })
  await own.counter('views').add(pool, page)
  const token = await own.counter('views').add(pool, page)
  expect(await own.counter('views').get(page, { fresh: true })).toMatchObject({ count: 2, pending: 2 })
  await own.drain()
  await own.counter('views').waitFor(token, { key: page, timeoutMs: 0 })
  expect(await own.counter('views').get(page)).toBe(2)
  await own.counter('views').resetAll()
  await own.drain()
  expect(await own.counter('views').get(page)).toBe(0)
  expect(await value(pool, `select count(*)::int from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`)).toBe(0)
  await pool.end()
})
