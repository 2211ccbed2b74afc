import { setTimeout as sleep } from 'node:timers/promises'

import { CamelCasePlugin, Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import { createTally, PgtallyError, type Executor, type KeyType, type Tally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, applyAll, column, createBlog, installed, like, stored, value, type Blog, type Session } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const everySecond = { rest: { rotationPeriodMs: 1000 } }
const rotate = (session: Session, { counter }: Blog) => value<number>(session, 'select pgtally.rotate($1)', [counter])
const fresh = ({ counter }: Blog, post: number, executor: Executor = db.pool) => tally.counter(counter).get(post, { fresh: true, executor })
const count = async (blog: Blog, post: number, executor?: Executor) => (await fresh(blog, post, executor)).count

describe('what a fresh count is made of', () => {
  test('pending until a batch takes it, carried while its row is locked, then stored', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 2)
    await like(db.pool, blog, 1)
    expect(await fresh(blog, 1)).toEqual({ count: 3, stored: 0, carried: 0, pending: 3 })
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for no key update`)
    await applyAll(db.pool, blog.counter)
    expect(await fresh(blog, 1)).toEqual({ count: 3, stored: 0, carried: 3, pending: 0 })
    await db.pool.query(`delete from ${blog.likes} where id = (select min(id) from ${blog.likes})`)
    await like(db.pool, blog, 2)
    expect(await fresh(blog, 1)).toEqual({ count: 2, stored: 0, carried: 3, pending: -1 })
    await apply(db.pool, blog.counter)
    expect(await fresh(blog, 1)).toEqual({ count: 2, stored: 0, carried: 2, pending: 0 })
    await holder.query('rollback')
    await value(db.pool, 'select pgtally.apply_carried($1)', [blog.counter])
    await like(db.pool, blog, 1, 4)
    expect(await fresh(blog, 1)).toEqual({ count: 6, stored: 2, carried: 0, pending: 4 })
    expect(await tally.counter(blog.counter).get(1)).toBe(2)
  })

  test('of each key what concerns it, the keys as they were given', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 2)
    await applyAll(db.pool, blog.counter)
    await like(db.pool, blog, 2)
    const handle = tally.counter(blog.counter)
    const nothing = { count: 0, stored: 0, carried: 0, pending: 0 }
    const two = { ...nothing, count: 2, stored: 2 }
    const one = { ...nothing, count: 1, pending: 1 }
    expect(await handle.getMany([1, '1', 2, 1, 2n, 3, 404], { fresh: true })).toEqual(
      new Map<string | number | bigint, unknown>([[1, two], ['1', two], [2, one], [2n, one], [3, nothing], [404, nothing]]),
    )
    expect(await handle.getMany([], { fresh: true })).toEqual(new Map())
  })

  test('a row that is gone has no count, whatever is still pending for it', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 5)
    await applyAll(db.pool, blog.counter)
    await like(db.pool, blog, 1)
    await db.pool.query(`delete from ${blog.posts} where id = 1`)
    expect(await value(db.pool, `select count(*)::int from ${blog.likes} where post_id = 1`)).toBe(0)
    expect(await fresh(blog, 1)).toEqual({ count: 0, stored: 0, carried: 0, pending: 0 })
    await applyAll(db.pool, blog.counter)
    expect(await count(blog, 1)).toBe(0)
  })

  test('where rows are inserted or required, a key without one has what is pending', async () => {
    for (const onMissing of ['insert', 'error'] as const) {
      const blog = await createBlog(db, tally, { rest: { onMissing } })
      await db.pool.query(`alter table ${blog.likes} drop constraint ${blog.likes}_post_id_fkey`)
      await like(db.pool, blog, 77, 3)
      expect(await fresh(blog, 77)).toEqual({ count: 3, stored: 0, carried: 0, pending: 3 })
    }
  })

  test('sums and conditions as they are', async () => {
    const blog = await createBlog(db, tally, { source: { where: `kind = 'like'`, sum: 'weight' } })
    await db.pool.query(`insert into ${blog.likes} (post_id, kind, weight) values (1, 'like', 5), (1, 'like', -7), (1, 'love', 9), (1, 'like', null)`)
    expect(await count(blog, 1)).toBe(-2)
    await db.pool.query(`update ${blog.likes} set kind = 'like'`)
    expect(await count(blog, 1)).toBe(7)
    await db.pool.query(`truncate ${blog.likes}`)
    expect(await count(blog, 1)).toBe(0)
  })

  test('of a counter that follows a queue, at its own pace', async () => {
    const blog = await createBlog(db, tally)
    const follower = tally.counter(`follower of ${blog.counter}`)
    await tally.createCounter(follower.name, { queue: blog.counter })
    await like(db.pool, blog, 1, 2)
    await applyAll(db.pool, blog.counter)
    expect([await fresh(blog, 1), await follower.get(1, { fresh: true })]).toMatchObject([{ count: 2, stored: 2 }, { count: 2, pending: 2 }])
  })
})

describe('keys', () => {
  const uuid = '9C2F4CFC-6B0A-4A5C-9D4A-0D4CBD5B7A11'
  const types: [type: KeyType, keys: (string | number | bigint)[], absent: string | number][] = [
    ['smallint', [-32768, 0, 32767], 5],
    ['integer', [-2147483648, 0, 2147483647], 5],
    ['bigint', [-(2n ** 63n), 0, 2n ** 63n - 1n], 5],
    ['uuid', [uuid, '00000000-0000-0000-0000-000000000000'], 'ffffffff-ffff-ffff-ffff-ffffffffffff'],
    ['text', ['', ' ', 'NULL', 'null', '{a,b}', '"', '\\', `o'clock`, 'naïve 🙂', 'x'.repeat(2000), '%s %I $1'], 'none'],
  ]
  for (const [keyType, keys, absent] of types) {
    test(`of type ${keyType}`, async () => {
      await tally.createCounter(`of ${keyType}`, { keyType })
      const handle = tally.counter(`of ${keyType}`)
      for (const [index, key] of keys.entries()) await handle.add(db.pool, key, index + 1)
      await applyAll(db.pool, handle.name)
      for (const key of keys) await handle.add(db.pool, key, 10)
      const expected = new Map<string | number | bigint, object>(keys.map((key, index) => [key, { count: index + 11, stored: index + 1, carried: 0, pending: 10 }] as const))
      expected.set(absent, { count: 0, stored: 0, carried: 0, pending: 0 })
      expect(await handle.getMany([...keys, absent], { fresh: true })).toEqual(expected)
    })
  }

  test('in any form that the type takes', async () => {
    const handle = tally.counter('of uuid')
    const forms = [uuid, uuid.toLowerCase(), `{${uuid}}`]
    for (const form of forms) expect(await handle.get(form, { fresh: true })).toMatchObject({ count: 11 })
    expect((await handle.getMany(forms, { fresh: true })).size).toBe(3)
  })

  test('that are none are refused as by the server, and so is an unknown counter', async () => {
    await expect(tally.counter('of bigint').get('x', { fresh: true })).rejects.toMatchObject({ code: '22P02' })
    await expect(tally.counter('of uuid').get('x', { fresh: true })).rejects.toMatchObject({ code: '22P02' })
    await expect(tally.counter('of smallint').get(40_000, { fresh: true })).rejects.toMatchObject({ code: '22003' })
    await expect(tally.counter('of bigint').get(1.5, { fresh: true })).rejects.toThrow(PgtallyError)
    await expect(tally.counter('of bigint').get(undefined as unknown as number, { fresh: true })).rejects.toThrow(PgtallyError)
    await expect(tally.counter('nobody').get(1, { fresh: true })).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('"nobody"') })
  })
})

test('counts beyond a number are refused, and given as bigint', async () => {
  await tally.createCounter('large', { keyType: 'bigint' })
  const handle = tally.counter('large')
  const most = Number.MAX_SAFE_INTEGER
  await handle.add(db.pool, 1, most)
  await handle.add(db.pool, 2, 2n ** 62n)
  await applyAll(db.pool, 'large')
  expect(await handle.get(1, { fresh: true })).toMatchObject({ count: most })
  await handle.add(db.pool, 1)
  await expect(handle.get(1, { fresh: true })).rejects.toMatchObject({ code: 'UNSAFE_COUNT', message: expect.stringMatching(/"large".* 1, 9007199254740992,.*bigint: true/) })
  await expect(handle.getMany([3, 1], { fresh: true })).rejects.toMatchObject({ code: 'UNSAFE_COUNT' })
  expect(await handle.get(1, { fresh: true, bigint: true })).toEqual({ count: 2n ** 53n, stored: BigInt(most), carried: 0n, pending: 1n })
  // The count would do, its parts would not.
  await handle.add(db.pool, 2, -(2n ** 62n))
  await expect(handle.get(2, { fresh: true })).rejects.toMatchObject({ code: 'UNSAFE_COUNT' })
  expect(await handle.getMany([2], { fresh: true, bigint: true })).toEqual(new Map([[2, { count: 0n, stored: 2n ** 62n, carried: 0n, pending: -(2n ** 62n) }]]))
})

describe('in the caller\'s own transaction', () => {
  interface Own {
    executor: Executor
    run(sql: string): Promise<unknown>
  }
  const kysely = (...plugins: CamelCasePlugin[]) => new Kysely<unknown>({ dialect: new PostgresDialect({ pool: db.pool }), plugins })
  const inKysely = (database: Kysely<unknown>, isolation: 'read committed' | 'repeatable read', work: (own: Own) => Promise<void>) =>
    database
      .transaction()
      .setIsolationLevel(isolation)
      .execute((executor) => work({ executor, run: (sql) => executor.executeQuery({ sql, parameters: [], query: { kind: 'RawNode', sqlFragments: [sql], parameters: [] }, queryId: { queryId: 'test' } } as never) }))
  const inClient = async (isolation: string, work: (own: Own) => Promise<void>) => {
    const client = await db.pool.connect()
    await client.query(`begin isolation level ${isolation}`)
    await work({ executor: client, run: (sql) => client.query(sql) })
    await client.query('commit')
    client.release()
  }
  const transactions: [name: string, seesOthers: boolean, run: (work: (own: Own) => Promise<void>) => Promise<void>][] = [
    ['READ COMMITTED with pg', true, (work) => inClient('read committed', work)],
    ['REPEATABLE READ with pg', false, (work) => inClient('repeatable read', work)],
    ['SERIALIZABLE with pg', false, (work) => inClient('serializable', work)],
    ['READ COMMITTED with Kysely', true, (work) => inKysely(kysely(), 'read committed', work)],
    ['REPEATABLE READ with Kysely and CamelCasePlugin', false, (work) => inKysely(kysely(new CamelCasePlugin()), 'repeatable read', work)],
  ]
  for (const [name, seesOthers, run] of transactions) {
    test(`${name}: it sees what it has written itself, and nothing of what others have not committed`, async () => {
      const blog = await createBlog(db, tally)
      const other = await db.connect()
      await other.query('begin')
      await like(other, blog, 1, 100)
      await like(db.pool, blog, 1)
      await run(async (own) => {
        const seen = () => count(blog, 1, own.executor)
        const insert = `insert into ${blog.likes} (post_id) values (1)`
        expect(await seen()).toBe(1)
        await own.run(insert)
        expect(await seen()).toBe(2)
        await own.run('savepoint a')
        await own.run(`delete from ${blog.likes} where post_id = 1`)
        expect(await seen()).toBe(0)
        await own.run('savepoint b')
        await own.run(`${insert}, (1), (1)`)
        expect(await seen()).toBe(3)
        await own.run('rollback to b')
        expect(await seen()).toBe(0)
        await own.run('rollback to a')
        expect(await seen()).toBe(2)
        await own.run('savepoint c')
        await own.run(insert)
        await own.run('release c')
        expect(await seen()).toBe(3)
        // Meanwhile the rest of the world goes on.
        expect(await count(blog, 1)).toBe(1)
        await like(db.pool, blog, 1)
        await applyAll(db.pool, blog.counter)
        expect(await seen()).toBe(seesOthers ? 4 : 3)
        expect(await count(blog, 1)).toBe(2)
      })
      expect(await fresh(blog, 1)).toEqual({ count: 4, stored: 2, carried: 0, pending: 2 })
      await other.query('rollback')
      expect(await count(blog, 1)).toBe(4)
      await applyAll(db.pool, blog.counter)
      expect(await fresh(blog, 1)).toEqual({ count: 4, stored: 4, carried: 0, pending: 0 })
    })
  }

  test('it may apply in between: what it wrote itself stays pending to it', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1)
    const own = await db.connect()
    await own.query('begin')
    await like(own, blog, 1, 2)
    await apply(own, blog.counter)
    expect(await fresh(blog, 1, own)).toEqual({ count: 3, stored: 1, carried: 0, pending: 2 })
    await like(own, blog, 1)
    await apply(own, blog.counter)
    await like(db.pool, blog, 1, 10)
    expect(await fresh(blog, 1, own)).toEqual({ count: 14, stored: 1, carried: 0, pending: 13 })
    expect(await fresh(blog, 1)).toEqual({ count: 11, stored: 0, carried: 0, pending: 11 })
    await own.query('commit')
    expect(await fresh(blog, 1)).toEqual({ count: 14, stored: 1, carried: 0, pending: 13 })
    await applyAll(db.pool, blog.counter)
    expect(await stored(db.pool, blog)).toEqual({ 1: 14 })
  })

  test('a transaction that was in progress at many batches stays pending until one after its end', async () => {
    const blog = await createBlog(db, tally)
    const writers = await Promise.all(Array.from({ length: 5 }, () => db.connect()))
    for (const writer of writers) {
      await writer.query('begin')
      await like(writer, blog, 1)
      await like(db.pool, blog, 2)
      await apply(db.pool, blog.counter)
    }
    for (const [index, writer] of writers.toReversed().entries()) {
      expect(await count(blog, 1)).toBe(index)
      await (index === 2 ? writer.query(`prepare transaction '${blog.counter}'`) : writer.query('commit'))
      if (index === 2) await db.pool.query(`commit prepared '${blog.counter}'`)
      expect(await fresh(blog, 1)).toMatchObject({ count: index + 1, stored: index, pending: 1 })
      await apply(db.pool, blog.counter)
    }
    expect(await fresh(blog, 1)).toMatchObject({ stored: 5, pending: 0 })
  })
})

test('a counter whose position is another cluster\'s has none, nor has one whose target was dropped', async () => {
  const [elsewhere, dropped] = [await createBlog(db, tally), await createBlog(db, tally)]
  await db.pool.query('update pgtally.consumer set system_identifier = 1 where name = $1', [elsewhere.counter])
  await expect(fresh(elsewhere, 1)).rejects.toMatchObject({ code: 'OTHER_CLUSTER', message: expect.stringContaining('pgtally rebase') })
  await expect(tally.counter(elsewhere.counter).waitFor('5')).rejects.toMatchObject({ code: 'OTHER_CLUSTER' })
  await db.pool.query(`drop table ${dropped.posts} cascade`)
  await expect(fresh(dropped, 1)).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringContaining(dropped.counter) })
  for (const { counter } of [elsewhere, dropped]) await tally.dropCounter(counter)
})

test('it is one statement, which needs nothing of a session and writes nothing', async () => {
  const blog = await createBlog(db, tally)
  await like(db.pool, blog, 1)
  const statements: string[] = []
  const spy = { query: (text: string, values?: unknown[]) => (statements.push(text), db.pool.query(text, values)) }
  expect((await tally.counter(blog.counter).getMany([1, 2], { fresh: true, executor: spy })).get(1)).toMatchObject({ count: 1 })
  expect(statements).toHaveLength(1)

  const readOnly = await db.connect()
  await readOnly.query('begin read only')
  expect(await count(blog, 1, readOnly)).toBe(1)
  expect(await value(readOnly, 'select pg_current_xact_id_if_assigned()::text')).toBeNull()
  await readOnly.query('commit')
  expect(await value(readOnly, `select count(*)::int from pg_locks where pid = pg_backend_pid() and locktype <> 'virtualxid' and relation <> 'pg_locks'::regclass`)).toBe(0)

  const pool = new pg.Pool({ connectionString: db.connectionString, maxUses: 1 })
  expect(await createTally({ pool }).counter(blog.counter).get(1, { fresh: true })).toMatchObject({ count: 1 })
  await pool.end()
})

const seed = Math.floor(Math.random() * 2 ** 31)

test(`equals the rows of the source in every snapshot, while writers, workers and rotations go on (seed ${seed})`, async () => {
  const blog = await createBlog(db, tally, { ...everySecond, posts: 6 })
  const weights = `weights of ${blog.likes}`
  await db.pool.query(`create index on ${blog.likes} (post_id)`)
  await tally.createCounter(weights, { source: { table: blog.likes, key: 'post_id', where: `kind = 'like'`, sum: 'weight' }, rotationPeriodMs: 1000 })
  const random = new Random(seed)
  const seen = { snapshots: 0, stored: 0, carried: 0, pending: 0, own: 0, old: 0 }
  let newestPost = 1000
  let paused = false

  /** In one statement, and so in one snapshot: the keys of which the rows are not what the fresh counts say. */
  async function compare(session: Session): Promise<void> {
    const keys = [1, 2, 3, 4, 5, 6, newestPost, newestPost - 1, 404].map(String)
    const { rows } = await session.query<Record<'counter' | 'key' | 'rows' | 'stored' | 'carried' | 'pending', string>>(
      `select counter, f.key, r.rows, f.stored, f.carried, f.pending from (
          select 'likes' as counter, f.* from pgtally.get_fresh_counts($1, $3) f
          union all select 'weights', f.* from pgtally.get_fresh_counts($2, $3) f
        ) f
        cross join lateral (
          select (case counter when 'likes' then count(*) else coalesce(sum(weight) filter (where kind = 'like'), 0) end)::bigint as rows
          from ${blog.likes} where post_id = f.key::bigint
        ) r`,
      [blog.counter, weights, keys],
    )
    expect(rows).toHaveLength(2 * keys.length)
    expect(rows.filter((row) => Number(row.rows) !== Number(row.stored) + Number(row.carried) + Number(row.pending))).toEqual([])
    seen.snapshots++
    for (const part of ['stored', 'carried', 'pending'] as const) if (rows.some((row) => row[part] !== '0')) seen[part]++
  }

  const post = (own: Random) => (own.next() < 0.5 ? 1 : own.upTo(6))
  const acts: [(session: Session, own: Random) => Promise<unknown>, ...((session: Session, own: Random) => Promise<unknown>)[]] = [
    (session, own) => session.query(`insert into ${blog.likes} (post_id, kind, weight) values ($1, $2, $3)`, [post(own), own.pick(['like', 'love']), own.upTo(9) - 4]),
    (session, own) => session.query(`insert into ${blog.likes} (post_id, weight) select 1 + n % 6, n from generate_series(1, $1) n`, [own.upTo(20)]),
    (session, own) => session.query(`delete from ${blog.likes} where id in (select id from ${blog.likes} where post_id = $1 limit $2)`, [post(own), own.upTo(40)]),
    (session, own) =>
      session.query(`update ${blog.likes} set post_id = $1, kind = $2, weight = $3 where id in (select id from ${blog.likes} where post_id = $4 limit 3)`, [
        post(own), own.pick(['like', 'love']), own.upTo(5), post(own),
      ]),
    async (session) => {
      // Its number is not used again.
      const id = ++newestPost
      await session.query(`insert into ${blog.posts} (id) values ($1)`, [id])
      await session.query(`insert into ${blog.likes} (post_id) values ($1), ($1)`, [id])
    },
    (session, own) => session.query(`delete from ${blog.posts} where id = $1`, [newestPost - own.upTo(3)]),
  ]
  async function write(session: Session, own: Random): Promise<void> {
    await session.query(`begin isolation level ${own.pick(['read committed', 'read committed', 'repeatable read', 'serializable'])}`)
    const slow = own.next() < 0.05
    for (let i = own.upTo(4); i > 0; i--) {
      const nested = own.next() < 0.3
      if (nested) await session.query('savepoint s')
      await own.pick(acts)(session, own)
      if (nested) await session.query(own.next() < 0.5 ? 'rollback to s' : 'release s')
      if (slow) await sleep(own.upTo(700))
    }
    if (own.next() < 0.5 && !paused) {
      await compare(session)
      seen.own++
    }
    await session.query(own.next() < 0.2 ? 'rollback' : 'commit')
  }
  async function lock(session: Session, own: Random): Promise<void> {
    await session.query('begin')
    await session.query(`update ${blog.posts} set title = 'edited' where id = $1`, [post(own)])
    await sleep(own.upTo(150))
    await session.query('commit')
  }
  async function readInOneTransaction(session: Session, own: Random): Promise<void> {
    await session.query('begin isolation level repeatable read')
    for (let i = own.upTo(own.next() < 0.1 ? 40 : 4); i > 0; i--) {
      await compare(session)
      await sleep(own.upTo(30))
    }
    await session.query('commit')
  }

  /** Workers try now and then, and with this many readers they hardly find a moment when nobody reads. */
  async function rotateWhileNobodyReads(session: Session): Promise<void> {
    paused = true
    for (let i = 0; i < 10; i++) {
      for (const counter of [blog.counter, weights]) await rotate(session, { ...blog, counter })
      await sleep(10)
    }
    paused = false
    await sleep(700)
  }

  const finished = new AbortController()
  /** Server errors are part of it: deadlocks, serialization failures, and a fresh read that comes too late is refused. A wrong count is not. */
  async function until(work: (session: Session, own: Random) => Promise<void>, own: Random): Promise<void> {
    const session = await db.connect()
    while (!finished.signal.aborted) {
      try {
        await work(session, own)
      } catch (error) {
        if (!(error instanceof pg.DatabaseError) || !['40001', '40P01', '23503', 'TL004'].includes(error.code ?? '')) throw error
        if (error.code === 'TL004') seen.old++
        await session.query('rollback')
      }
      await sleep(own.upTo(5))
    }
  }
  const files = () => column<string>(db.pool, `select pg_relation_filenode(inhrelid)::text from pg_inherits where inhparent = $1::regclass`, [eventTable])
  const eventTable = `pgtally.event_${await value<number>(db.pool, 'select pgtally.queue_id($1)', [blog.counter])}`
  const filesSeen = new Set(await files())

  await using worker = tally.worker({ pollIntervalMs: 10 })
  await using second = tally.worker({ pollIntervalMs: 40, maxBatchEvents: 20 })
  const background = Promise.all([
    ...Array.from({ length: 4 }, () => until(write, random.fork())),
    until(lock, random.fork()),
    ...[compare, compare, readInOneTransaction].map((read) => until((session, own) => (paused ? sleep(5) : read(session, own)), random.fork())),
    until(rotateWhileNobodyReads, random.fork()),
  ])
  const enough = async () => {
    for (const file of await files()) filesSeen.add(file)
    // Three slots to begin with, and twice a new file. A snapshot is of nine keys and two counters.
    return filesSeen.size >= 5 && seen.snapshots * 18 >= 20_000 && seen.own >= 100 && Math.min(seen.stored, seen.carried, seen.pending) >= 100
  }
  try {
    await Promise.race([waitFor(enough, { what: 'rotations and snapshots of all kinds' }), background])
  } finally {
    finished.abort()
    await Promise.allSettled([background])
  }
  await background
  await Promise.all([worker.stop(), second.stop()])
  const { failed } = await tally.drain()
  expect(failed.filter(({ counter }) => [blog.counter, weights].includes(counter))).toEqual([])
  await compare(db.pool)
  expect(seen.old).toBeLessThan(seen.snapshots / 10)
  const keys = [1, 2, 3, 4, 5, 6]
  const counts = await tally.counter<number>(blog.counter).getMany(keys, { fresh: true })
  for (const key of keys) expect(counts.get(key)).toMatchObject({ carried: 0, pending: 0 })
  expect(await tally.counter(blog.counter).audit()).toMatchObject({ driftingKeys: 0 })
})

test('nothing that rules out sequential scans is compiled just in time: the planner thinks it dear enough for that', async () => {
  const { rows } = await db.pool.query<{ name: string; jit: boolean }>(
    `select proname as name, 'jit=off' = any (proconfig) as jit from pg_proc where pronamespace = 'pgtally'::regnamespace and 'enable_seqscan=off' = any (proconfig)`,
  )
  expect(rows.length).toBeGreaterThan(1)
  expect(rows.filter(({ jit }) => !jit)).toEqual([])
})
