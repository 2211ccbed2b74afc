import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { expect, test, type TestContext } from 'vitest'

import { createTally, type AppliedChanges } from '../src/index.ts'
import { createTestDatabase, waitFor } from './support/database.ts'
import { column, value, violations } from './support/fixtures.ts'
import { startAddress, startReplication } from './support/replication.ts'
import { beside } from './support/storm.ts'

const posts = 20
// Of one wait, where the machine is busy.
const timeoutMs = 60_000

/** Each user likes a post once, so a like is known by its row; and each is an event of its own. */
const tables = `
  create table posts (id bigint primary key, like_count bigint not null default 0);
  insert into posts (id) select generate_series(1, ${posts});
  create table likes (post_id bigint references posts, user_id bigint, primary key (post_id, user_id));
  create table handled (post_id text, user_id text)`

/** The primary goes in the middle of everything, and the replica is promoted. */
async function failover(context: TestContext, synchronous: boolean) {
  await using servers = await startReplication(context, { synchronous })
  await using address = await startAddress(servers.primary.connectionString)
  await using db = await createTestDatabase(address.connectionString)
  await db.pool.query(tables)
  const tally = createTally({ pool: db.pool })
  await tally.install()
  await tally.createCounter('post_likes', {
    source: { table: 'likes', key: 'post_id', data: ['user_id'] }, target: { table: 'posts', key: 'id', column: 'like_count' }, rotationPeriodMs: 1000,
  })
  await tally.createCounter('views', { keyType: 'text', rotationPeriodMs: 1000 })
  for (const name of ['exactly', 'at least']) await tally.queue('post_likes').register(name)

  /** What was reported durable, and what may be there. */
  const [durable, possible] = [new Set<string>(), new Set<string>()]
  const views = { durable: 0, possible: 0 }
  const seen = new Set<string>()
  const told: AppliedChanges[] = []
  let users = 0
  const attempt = async (write: (post: number, user: number) => Promise<unknown>) => {
    const [user, post] = [++users, 1 + (users % posts)]
    possible.add(`${post}:${user}`)
    const written = await write(post, user).then(() => true, () => false)
    if (written) durable.add(`${post}:${user}`)
    else await sleep(20)
  }
  let [durableBefore, durableAtTheEnd] = [0, 0]
  {
    await using running = new AsyncDisposableStack()
    const pool = running.adopt(new pg.Pool({ connectionString: db.connectionString, max: 30, connectionTimeoutMillis: 2000 }), (own) => own.end())
    pool.on('error', () => {})
    const own = createTally({ pool })
    running.use(own.worker({ pollIntervalMs: 5, onApplied: (changes) => void told.push(changes) }))
    running.use(own.worker())
    running.use(own.consumer({ queue: 'post_likes', name: 'exactly', pollIntervalMs: 10, leaseMs: 1000, concurrency: 2, ordered: false, maxEvents: 50, handler: async (batch) => {
      for await (const { key, data } of batch) await batch.client.query('insert into handled values ($1, $2)', [key, (data as { user_id: number }).user_id])
    } }))
    running.use(own.consumer({ queue: 'post_likes', name: 'at least', mode: 'at-least-once', pollIntervalMs: 10, leaseMs: 1000, maxEvents: 50, handler: async (batch) => {
      for await (const { key, data } of batch) seen.add(`${key}:${(data as { user_id: number }).user_id}`)
    } }))
    const likes = running.use(own.writer<number, number>({ table: 'likes', key: 'post_id', member: 'user_id' }))
    {
      await using writing = new AsyncDisposableStack()
      for (let n = 0; n < 3; n++) writing.use(beside(() => attempt((post, user) => pool.query('insert into likes values ($1, $2)', [post, user]))))
      writing.use(beside(() => Promise.all(Array.from({ length: 20 }, () => attempt((post, user) => likes.add(post, user))))))
      writing.use(beside(async () => {
        views.possible++
        await own.counter<string>('views').add(pool, '/home').then(() => views.durable++, () => sleep(20))
      }))
      const handled = () => value<number>(pool, 'select count(*)::int from handled')
      await waitFor(async () => durable.size > 300 && views.durable > 20 && told.length > 10 && seen.size > 100 && (await handled()) > 100, { what: 'a load', timeoutMs })
      if (!synchronous) {
        await servers.standby.cutOff()
        const size = durable.size
        await waitFor(async () => durable.size > size + 200, { what: 'likes that the replica does not get', timeoutMs })
      }
      durableBefore = durable.size
      await servers.primary.crash()
      await servers.standby.promote()
      address.moveTo(servers.standby.url(address.connectionString))
      // Workers and consumers go on by themselves.
      const [size, batches, done] = [durable.size, told.length, await waitFor(() => handled().catch(() => undefined), { what: 'a connection', timeoutMs })]
      await waitFor(async () => durable.size > size + 200 && told.length > batches + 5 && (await handled().catch(() => 0)) > done + 100, { what: 'a load after the failover', timeoutMs })
      durableAtTheEnd = durable.size
    }
    await waitFor(async () => {
      const { counters, consumers } = await own.status()
      return [...counters, ...consumers].every(({ pendingEvents }) => pendingEvents === 0) && counters.every(({ carriedKeys }) => carriedKeys === 0)
    }, { what: 'everything to be applied and handled', timeoutMs })
  }
  expect(durableAtTheEnd).toBeGreaterThan(durableBefore)

  // Counts are those of the rows, whichever rows those are.
  const there = await column<string>(db.pool, `select post_id || ':' || user_id from likes`)
  expect(await value(db.pool, 'select count(*)::int from posts where like_count <> (select count(*) from likes where post_id = posts.id)')).toBe(0)
  expect(await value(db.pool, 'select sum(like_count)::int from posts')).toBe(there.length)
  expect(await violations(db, 'post_likes')).toEqual([])
  expect(await tally.counter('post_likes').audit()).toMatchObject({ driftingKeys: 0 })
  expect((await tally.status()).counters.map(({ problems, lastError }) => [problems, lastError])).toEqual([[[], null], [[], null]])
  expect(there.filter((like) => !possible.has(like))).toEqual([])
  // The transactional consumer has handled each like that is there once, and no other; the other one has seen each.
  expect((await column<string>(db.pool, `select post_id || ':' || user_id from handled`)).toSorted()).toEqual(there.toSorted())
  expect(there.filter((like) => !seen.has(like))).toEqual([])

  const rows = new Set(there)
  const viewCount = await tally.counter<string>('views').get('/home')
  return { lost: [...durable].filter((like) => !rows.has(like)), views, viewCount, told }
}

test('failover to a synchronous replica under load: everything that was reported durable is there, and counted and handled once', { timeout: 150_000 }, async (context) => {
  const { lost, views, viewCount, told } = await failover(context, true)
  expect(lost).toEqual([])
  expect(viewCount).toBeGreaterThanOrEqual(views.durable)
  expect(viewCount).toBeLessThanOrEqual(views.possible)
  // What a worker tells was there for good: versions never go back, and counts only grow here.
  for (const counter of ['post_likes', 'views']) {
    const versions = told.filter((applied) => applied.counter === counter).map(({ version }) => version)
    expect(versions).toEqual(versions.toSorted((one, other) => Number(one - other)))
    expect(new Set(versions).size).toBe(versions.length)
  }
  const last = new Map<string, number>()
  for (const { counter, changes } of told) {
    for (const { key, value: count } of changes) {
      expect(Number(count)).toBeGreaterThan(last.get(`${counter} ${key}`) ?? 0)
      last.set(`${counter} ${key}`, Number(count))
    }
  }
})

test('failover to an asynchronous replica that is behind: what it had not been sent is lost, as ever with PostgreSQL, and the counts are those of the rest', { timeout: 150_000 }, async (context) => {
  const { lost, views, viewCount } = await failover(context, false)
  // Or this would have shown nothing.
  expect(lost.length).toBeGreaterThanOrEqual(200)
  expect(viewCount).toBeGreaterThan(0)
  expect(viewCount).toBeLessThan(views.possible)
})
