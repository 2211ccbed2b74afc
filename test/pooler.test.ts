import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { expect, test } from 'vitest'

import { createTally, defineCounters } from '../src/index.ts'
import { createTestDatabase, waitFor } from './support/database.ts'
import { column, value, violations } from './support/fixtures.ts'
import { startPgbouncer } from './support/pgbouncer.ts'
import { recorder } from './support/recorder.ts'
import { beside, startCommand } from './support/storm.ts'

const poolSize = 5
const posts = 20

const counters = defineCounters()({
  post_likes: {
    source: { table: 'likes', key: 'post_id', data: ['user_id'] }, target: { table: 'posts', key: 'id', column: 'like_count' }, milestones: [50], rotationPeriodMs: 1000,
  },
  views: { keyType: 'text', rotationPeriodMs: 1000 },
})

/** What a session has that another client would find there after us, one line for each. All of the pooler's sessions are looked at, each held by a transaction until all are. */
async function leftovers(url: string): Promise<{ sessions: number; found: string[] }> {
  const clients = Array.from({ length: poolSize }, () => new pg.Client({ connectionString: url }))
  const pids = new Set<number>()
  const found: string[] = []
  try {
    for (const client of clients) {
      await client.connect()
      await client.query('begin')
      pids.add(await value<number>(client, 'select pg_backend_pid()'))
      // Of the settings, PgBouncer itself keeps these in step with each client's.
      found.push(...(await column<string>(client, `
        select 'setting ' || name || ' = ' || setting from pg_settings where source = 'session' and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', 'IntervalStyle', 'transaction_isolation', 'transaction_read_only', 'transaction_deferrable')
        union all select 'prepared statement ' || statement from pg_prepared_statements
        union all select 'channel ' || c from pg_listening_channels() c
        union all select 'cursor ' || name from pg_cursors
        union all select 'temporary schema' where pg_my_temp_schema() <> 0
        union all select 'lock ' || locktype from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'`)))
    }
  } finally {
    for (const client of clients) await client.end()
  }
  return { sessions: pids.size, found }
}

test('everything works through PgBouncer in transaction mode, under load, and leaves nothing in its sessions', { timeout: 120_000 }, async (context) => {
  await using db = await createTestDatabase()
  await using pooler = await startPgbouncer(context, db.connectionString, poolSize)
  await db.pool.query(`
    create table posts (id bigint primary key, like_count bigint not null default 0);
    insert into posts (id) select generate_series(1, ${posts});
    create table likes (post_id bigint references posts, user_id bigint, primary key (post_id, user_id));
    insert into likes select 1 + n % ${posts}, -n from generate_series(1, 2000) n;
    create table handled (post_id text, user_id text)`)
  await using closing = new AsyncDisposableStack()
  const newTally = (max = 10) => {
    const pool = closing.adopt(new pg.Pool({ connectionString: pooler.connectionString, max }), (own) => own.end())
    pool.on('error', () => {})
    return { pool, tally: createTally({ pool, counters }) }
  }
  const [app, other, workers] = [newTally(), newTally(), newTally(20)]

  const logger = recorder()
  const seen = new Set<string>()
  const backends = new Map<pg.PoolClient, Set<number>>()
  let users = 0
  let viewed = 0
  const like = () => [1 + (++users % posts), users] as const
  {
    await using running = new AsyncDisposableStack()
    // Before there is a counter, and while it comes.
    const writing = running.use(beside(() => app.pool.query('insert into likes values ($1, $2)', [...like()])))
    await waitFor(async () => writing.rounds > 20, { what: 'likes' })
    // Both at once.
    await Promise.all([app.tally.install(), other.tally.install()])
    expect(await app.tally.counters.post_likes.audit()).toMatchObject({ driftingKeys: 0 })

    for (const name of ['exactly', 'at least']) await app.tally.queue('post_likes').register(name)
    const firstUser = users + 1_000_000
    users = firstUser
    running.use(workers.tally.worker({ pollIntervalMs: 5, notify: true, logger }))
    running.use(startCommand(pooler.connectionString, ['worker', '--poll-interval', '5']))
    running.use(workers.tally.consumer({ queue: 'post_likes', name: 'exactly', pollIntervalMs: 10, ordered: false, concurrency: 2, maxEvents: 100, handler: async (batch) => {
      for await (const { key, data } of batch) await batch.client.query('insert into handled values ($1, $2)', [key, (data as { user_id: number }).user_id])
    } }, { logger }))
    running.use(workers.tally.consumer({ queue: 'post_likes', name: 'at least', mode: 'at-least-once', pollIntervalMs: 10, maxEvents: 100, handler: async (batch) => {
      for await (const { key, data } of batch) seen.add(`${key}:${(data as { user_id: number }).user_id}`)
    } }, { logger }))

    const likes = running.use(app.tally.writer<number, number>({ table: 'likes', key: 'post_id', member: 'user_id' }))
    const views = running.use(other.tally.buffered<string>('views', { flushIntervalMs: 50 }))
    running.use(beside(() => Promise.all(Array.from({ length: 10 }, async () => likes.add(...like())))))
    running.use(beside(async () => {
      views.add('/home')
      viewed++
    }))
    // Transactions of several statements, of a client that stays the same, while the session behind it does not.
    for (const { pool, tally } of [app, other]) {
      running.use(beside(async () => {
        const client = await pool.connect()
        try {
          await client.query('begin')
          const pids = backends.get(client) ?? new Set()
          backends.set(client, pids.add(await value<number>(client, 'select pg_backend_pid()')))
          const [post, user] = like()
          await client.query('insert into likes values ($1, $2)', [post, user])
          const token = await tally.counters.views.add(client, '/about', 2)
          const { count } = await tally.counters.views.get('/about', { executor: client, fresh: true })
          await client.query('commit')
          viewed += 2
          await tally.counters.post_likes.waitFor(token, { key: post })
          await tally.counters.views.waitFor(token, { key: '/about' })
          expect(await tally.counters.views.get('/about')).toBeGreaterThanOrEqual(count)
        } finally {
          client.release()
        }
      }))
    }
    const listener = await db.connect()
    let notified = 0
    listener.on('notification', () => notified++)
    await listener.query('listen pgtally')
    let audits = 0
    const auditing = running.use(beside(async () => {
      expect(await other.tally.counters.post_likes.audit()).toMatchObject({ driftingKeys: 0 })
      expect((await other.tally.status()).counters.map(({ problems, lastError }) => [problems, lastError])).toEqual([[[], null], [[], null]])
      audits++
      await sleep(20)
    }))
    await waitFor(async () => users > firstUser + 1000 && audits > 5 && seen.size > 500 && notified > 0, { what: 'a load', timeoutMs: 60_000 })
    await auditing.stop()

    // Someone updates a count by hand, and the command line mends it.
    await db.pool.query('update posts set like_count = like_count + 7 where id = 3')
    await using command = startCommand(pooler.connectionString, ['reconcile', 'post_likes'])
    expect(await command.ended).toMatchObject({ code: 0, stderr: '' })
    await app.tally.createCounter('late', { queue: 'post_likes', keyType: 'bigint' })
    await writing.stop()
  }
  expect(await app.tally.drain()).toMatchObject({ failed: [] })
  await using consumer = workers.tally.consumer({ queue: 'post_likes', name: 'exactly', handler: async (batch) => {
    for await (const { key, data } of batch) await batch.client.query('insert into handled values ($1, $2)', [key, (data as { user_id: number }).user_id])
  } })
  await waitFor(async () => (await app.tally.status()).consumers.some(({ name, pendingEvents }) => name === 'exactly' && pendingEvents === 0), { what: 'the rest to be handled', timeoutMs: 40_000 })
  await consumer.stop()

  expect(await value(db.pool, 'select count(*)::int from posts where like_count <> (select count(*) from likes where post_id = posts.id)')).toBe(0)
  expect(await app.tally.counters.post_likes.audit()).toMatchObject({ driftingKeys: 0 })
  expect(await app.tally.counter('late').audit()).toMatchObject({ driftingKeys: 0 })
  expect(await violations(db, 'post_likes')).toEqual([])
  const counts = await app.tally.counters.views.getMany(['/home', '/about'])
  expect([...counts.values()].reduce((sum, count) => sum + count, 0)).toBe(viewed)
  expect(await app.tally.counters.post_likes.milestones(1)).toMatchObject([{ threshold: 50 }])
  const handled = await column<string>(db.pool, `select post_id || ':' || user_id from handled where user_id::bigint > 1000000`)
  expect(handled.toSorted()).toEqual((await column<string>(db.pool, `select post_id || ':' || user_id from likes where user_id > 1000000`)).toSorted())
  expect(logger.messages.filter((message) => !/(worker|consumer) (started|stopped)/.test(message))).toEqual([])

  // As is documented: those are parameters of the connection.
  await expect(new pg.Client({ connectionString: pooler.connectionString, statement_timeout: 1000 }).connect()).rejects.toThrow(/statement_timeout/)
  // Sessions were shared, and changed behind the clients.
  expect(Math.max(...[...backends.values()].map((pids) => pids.size))).toBeGreaterThan(1)
  expect(await leftovers(pooler.connectionString)).toEqual({ sessions: poolSize, found: [] })
  // That would have been found.
  await app.pool.query(`set work_mem = '9MB'; prepare left_behind as select 1; listen left_behind; create temp table left_behind (); select pg_advisory_lock(1)`)
  expect((await leftovers(pooler.connectionString)).found).toHaveLength(5)
  await db.pool.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = $1', ['client backend']).catch(() => {})
})
