import { beforeAll, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, applyAll, blocked, createBlog, installed, like, pid, statusOf, stored, value, violations, type Session } from './support/fixtures.ts'
import { dedicatedServer } from './support/server.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** Makes everything that has been applied by now old enough to be emptied, and the current slot another one. */
async function age(session: Session, counter: string): Promise<void> {
  await session.query(
    `update pgtally.batch b set finished_at = finished_at - interval '1 hour' from pgtally.consumer c
    where c.consumer_id = b.consumer_id and c.queue_id = pgtally.queue_id($1)`,
    [counter],
  )
}

test('a writer in REPEATABLE READ straddles rotations and batches: its like counts once', async () => {
  const blog = await createBlog(db, tally, { rest: { rotationPeriodMs: 1000 } })
  const writer = await db.connect()
  await writer.query('begin isolation level repeatable read')
  await value(writer, `select count(*) from ${blog.likes}`)
  let emptied = 0
  for (let round = 1; emptied < 2; round++) {
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    await age(db.pool, blog.counter)
    emptied += await value<number>(db.pool, 'select pgtally.rotate($1)', [blog.counter])
    if (round === 2) await like(writer, blog, 2)
    expect(await violations(db, blog.counter)).toEqual([])
  }
  await like(writer, blog, 2)
  await like(writer, blog, 3)
  await writer.query('commit')
  expect(await violations(db, blog.counter)).toEqual([])
  await applyAll(db.pool, blog.counter)
  expect(await stored(db.pool, blog)).toMatchObject({ 2: 2, 3: 1 })
  expect(await violations(db, blog.counter)).toEqual([])
})

test('a writer that was blocked on a lock straddles rotations and batches: its like counts once', async () => {
  const blog = await createBlog(db, tally, { rest: { rotationPeriodMs: 1000 } })
  const [blocker, writer] = [await db.connect(), await db.connect()]
  const writerPid = await pid(writer)
  // Its foreign key waits for this lock, after its own event has been written.
  await blocker.query('begin')
  await blocker.query(`select from ${blog.posts} where id = 2 for update`)
  const waiting = like(writer, blog, 2)
  await blocked(db, writerPid)
  let emptied = 0
  while (emptied < 2) {
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    await age(db.pool, blog.counter)
    emptied += await value<number>(db.pool, 'select pgtally.rotate($1)', [blog.counter])
  }
  await blocker.query('commit')
  await waiting
  await applyAll(db.pool, blog.counter)
  expect(await stored(db.pool, blog)).toMatchObject({ 2: 1 })
  expect(await violations(db, blog.counter)).toEqual([])
})

test('emit, apply, emit in one transaction, with foreign commits between', async () => {
  const blog = await createBlog(db, tally)
  const own = await db.connect()
  await own.query('begin')
  await like(own, blog, 1)
  await like(db.pool, blog, 2)
  await apply(own, blog.counter)
  await like(own, blog, 1)
  await like(db.pool, blog, 2)
  await own.query('savepoint s')
  await apply(own, blog.counter)
  await own.query('rollback to s')
  await like(db.pool, blog, 3)
  await own.query('savepoint s')
  await apply(own, blog.counter)
  await like(own, blog, 1)
  expect(await stored(own, blog)).toEqual({ 2: 2, 3: 1 })
  await own.query('commit')
  expect(await violations(db, blog.counter)).toEqual([])
  await applyAll(db.pool, blog.counter)
  expect(await stored(db.pool, blog)).toEqual({ 1: 3, 2: 2, 3: 1 })
})

test('many workers on one counter: the sum is right at every instant', async () => {
  const blog = await createBlog(db, tally, { posts: 5 })
  const written = new AbortController()
  const applier = async () => {
    const client = await db.connect()
    while (!written.signal.aborted) await apply(client, blog.counter, 10)
  }
  const auditor = async () => {
    let audits = 0
    for (; !written.signal.aborted; audits++) expect(await violations(db, blog.counter)).toEqual([])
    return audits
  }
  const writer = async (seed: number) => {
    for (let n = 0; n < 60; n++) {
      const post = 1 + ((seed * 7 + n) % 5)
      await like(db.pool, blog, post, 1 + (n % 3))
      if (n % 4 === 0) await db.pool.query(`delete from ${blog.likes} where id = (select min(id) from ${blog.likes} where post_id = $1)`, [post])
      if (n % 5 === 0) await db.pool.query(`update ${blog.likes} set post_id = 1 + post_id % 5 where id = (select max(id) from ${blog.likes})`)
    }
  }
  const background = [auditor(), applier(), applier(), applier(), applier()]
  await Promise.all(Array.from({ length: 4 }, (_, seed) => writer(seed))).finally(() => written.abort())
  expect((await Promise.all(background))[0]).toBeGreaterThan(0)
  await applyAll(db.pool, blog.counter)
  expect(await violations(db, blog.counter)).toEqual([])
  expect((await statusOf(db.pool, blog.counter)).pending_events).toBe('0')
})

test('150 long transactions, committed in another order, with batches between', async (context) => {
  await using server = await dedicatedServer(context, { max_connections: '250' })
  await using own = await createTestDatabase(server.connectionString)
  const blog = await createBlog(own, await installed(own), { posts: 150 })
  const sessions = await Promise.all(Array.from({ length: 150 }, () => own.connect()))
  for (const [index, session] of sessions.entries()) {
    await session.query('begin')
    await like(session, blog, 1 + index)
  }
  // 67 and 150 have no common divisor, so this is a permutation.
  const order = sessions.map((_, index) => (index * 67 + 31) % 150)
  const found: unknown[] = []
  for (const [position, index] of order.entries()) {
    const session = sessions[index]
    if (position % 11 === 5) {
      await session?.query('rollback')
      continue
    }
    await session?.query('commit')
    if (position % 7 === 0) await apply(own.pool, blog.counter)
    if (position % 50 === 0) found.push(...(await violations(own, blog.counter)))
  }
  await applyAll(own.pool, blog.counter)
  expect(await violations(own, blog.counter)).toEqual([])
  expect(found).toEqual([])
  const rolledBack = order.filter((_, position) => position % 11 === 5).length
  expect(Object.values(await stored(own.pool, blog))).toEqual(Array.from({ length: 150 - rolledBack }, () => 1))
})

test('100 idle polls assign no transaction id', async (context) => {
  await using server = await dedicatedServer(context, { autovacuum: 'off' })
  await using own = await createTestDatabase(server.connectionString)
  const blog = await createBlog(own, await installed(own))
  await like(own.pool, blog, 1)
  await applyAll(own.pool, blog.counter)
  await age(own.pool, blog.counter)
  await own.pool.query('select pgtally.rotate($1)', [blog.counter])
  // Includes the ids of transactions that have been rolled back, and of subtransactions.
  const nextXid = () => value<string>(own.pool, 'select next_xid from pg_control_checkpoint()')
  await own.pool.query('checkpoint')
  const before = await nextXid()
  for (let n = 0; n < 100; n++) {
    expect((await own.pool.query('select * from pgtally.due_counters()')).rows).toEqual([])
    expect(await value(own.pool, 'select pgtally.rotate($1)', [blog.counter])).toBe(0)
    await statusOf(own.pool, blog.counter)
  }
  await own.pool.query('checkpoint')
  expect(await nextXid()).toBe(before)
})

test('an unchanged snapshot spares the look at the counters, a commit does not', async () => {
  const blog = await createBlog(db, tally)
  const due = (seen: string | null) =>
    db.pool.query('select name from pgtally.due_counters($1::pg_snapshot) where name = $2', [seen, blog.counter]).then(({ rows }) => rows.length)
  const long = await db.connect()
  await long.query('begin')
  await like(long, blog, 1)
  const seen = await value<string>(db.pool, 'select pg_current_snapshot()::text')
  expect(await due(seen)).toBe(0)
  await long.query('commit')
  expect(await due(seen)).toBe(1)
})

test('positions are found in a bounded number of pages under a held xmin', async (context) => {
  await using server = await dedicatedServer(context)
  await using own = await createTestDatabase(server.connectionString)
  const blog = await createBlog(own, await installed(own))
  const holder = await own.connect()
  await holder.query('begin isolation level repeatable read')
  await holder.query('select 1')
  const id = await value<number>(own.pool, 'select counter_id from pgtally.counter')
  const pages = async () => {
    const plan = await value<{ Plan: Record<string, number> }[]>(
      own.pool,
      `explain (analyze, buffers, format json) select pgtally.consumer_position(${id}), pgtally.consumer_position(${id})`,
    )
    return (plan[0]?.Plan['Shared Hit Blocks'] ?? 0) + (plan[0]?.Plan['Shared Read Blocks'] ?? 0)
  }
  await own.pool.query(`do $$ begin
    for n in 1..2000 loop
      insert into ${blog.likes} (post_id) values (1 + n % 10);
      commit;
      perform pgtally.apply_batch('${blog.counter}');
      commit;
      if n % 500 = 0 then
        update pgtally.batch set finished_at = finished_at - interval '1 hour';
        perform pgtally.rotate('${blog.counter}');
        commit;
      end if;
    end loop;
  end $$`)
  expect((await statusOf(own.pool, blog.counter)).batches).toBe('2000')
  expect(await value(own.pool, 'select count(*)::int from pgtally.batch')).toBeLessThan(1000)
  await own.pool.query('analyze pgtally.batch')
  // Once more, as a first call also reads the catalogs.
  await pages()
  expect(await pages()).toBeLessThan(40)
  // For two more reasons to be fast: the consumer's row never changes, and one batch is one row.
  await waitFor(async () => Number(await value(own.pool, `select n_tup_ins from pg_stat_user_tables where relname = 'batch'`)) >= 2001, { what: 'the statistics' })
  expect(await value(own.pool, `select n_tup_upd::int from pg_stat_user_tables where relname = 'consumer'`)).toBe(0)
  await holder.query('commit')
})

test('updates of pgtally\'s own table are HOT', async () => {
  await db.pool.query('create table hot_source (post bigint)')
  await tally.createCounter('hot', { source: { table: 'hot_source', key: 'post' } })
  const client = await db.connect()
  for (let n = 0; n < 300; n++) {
    await client.query('insert into hot_source select n from generate_series(1, 10) n')
    await apply(client, 'hot')
  }
  // Statistics arrive when a session ends, at the latest.
  await client.end()
  const table = await value<string>(db.pool, `select target_table::text from pgtally.counter where name = 'hot'`)
  const { updates, hot } = await waitFor(
    async () => {
      const { rows } = await db.pool.query<{ updates: number; hot: number }>(
        'select n_tup_upd::int updates, n_tup_hot_upd::int hot from pg_stat_user_tables where relid = $1::regclass',
        [table],
      )
      return rows[0] !== undefined && rows[0].updates >= 2990 && rows[0]
    },
    { what: 'the statistics' },
  )
  // A page that is full while another session's snapshot is held has to send a row elsewhere; with the count in an index none would be HOT.
  expect(hot / updates).toBeGreaterThan(0.75)
})

test('a worker that looks for events does not read those that were applied', async () => {
  const blog = await createBlog(db, tally)
  const { rows } = await db.pool.query<{ table: string }>('select pgtally.event_table($1)::text as table', [blog.counter])
  await db.pool.query(`insert into ${rows[0]?.table} (ev_key, ev_delta) select 1, 0 from generate_series(1, 50000)`)
  await applyAll(db.pool, blog.counter)
  const pages = async () => {
    const [plan] = (await value<{ Plan: Record<string, number> }[]>(db.pool, 'explain (analyze, buffers, format json) select count(*) from pgtally.due_counters()')) ?? []
    return (plan?.Plan['Shared Hit Blocks'] ?? 0) + (plan?.Plan['Shared Read Blocks'] ?? 0)
  }
  await pages()
  expect(await pages()).toBeLessThan(200)
})

test('rows without a key are not counted', async () => {
  const blog = await createBlog(db, tally)
  await db.pool.query(`insert into ${blog.likes} (post_id) values (null), (1), (null)`)
  await db.pool.query(`update ${blog.likes} set post_id = 2 where id = (select min(id) from ${blog.likes})`)
  await db.pool.query(`update ${blog.likes} set post_id = null where post_id = 1`)
  await db.pool.query(`delete from ${blog.likes} where post_id is null`)
  await applyAll(db.pool, blog.counter)
  expect(await stored(db.pool, blog)).toEqual({ 2: 1 })
  expect(await violations(db, blog.counter)).toEqual([])
})
