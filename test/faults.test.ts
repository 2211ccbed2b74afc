import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { column, createBlog, installed, like, statusOf, stored, value, violations, type Blog } from './support/fixtures.ts'
import { recorder, said } from './support/recorder.ts'
import { beside, expectExact, seed, startCommand, storm } from './support/storm.ts'
import { dedicatedServer } from './support/server.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const clean = { driftingKeys: 0, drifts: [] }

const counted = (own: TestDatabase, blog: Blog, counts: Record<string, number>) =>
  waitFor(async () => JSON.stringify(await stored(own.pool, blog)) === JSON.stringify(counts), { what: `${blog.counter}: ${JSON.stringify(counts)}` })

/** A trigger of the posts at which a batch stops in the middle: some rows are updated, that of this post is next. */
async function createBarrier(own: TestDatabase, { posts }: Blog, post: number): Promise<{ close(): Promise<void>; open(): Promise<void>; waiting(): Promise<number> }> {
  await own.pool.query(`
    create function ${posts}_barrier() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock_shared(7); return new; end $$;
    create trigger barrier before update of like_count on ${posts} for each row when (new.id = ${post}) execute function ${posts}_barrier()`)
  let keeper: pg.Client | undefined
  return {
    close: async () => {
      keeper = await own.connect()
      await keeper.query('select pg_advisory_lock(7)')
    },
    open: async () => {
      // A crash may have opened it.
      await keeper?.query('select pg_advisory_unlock(7)').catch(() => {})
    },
    waiting: () =>
      waitFor(async () => (await value<number | null>(own.pool, `select pid from pg_locks where locktype = 'advisory' and objid = 7 and not granted and database = (select oid from pg_database where datname = current_database()) limit 1`)) ?? undefined, { what: 'a batch at the barrier' }),
  }
}

describe('SIGKILL of a worker process', () => {
  test('in the middle of a batch takes all of it back, and the next worker does it again', async () => {
    const blog = await createBlog(db, tally)
    const barrier = await createBarrier(db, blog, 2)
    for (const round of [1, 2]) {
      await barrier.close()
      await using worker = startCommand(db.connectionString, ['worker', '--poll-interval', '5'])
      await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + g % 3 from generate_series(1, 30) g`)
      const backend = await barrier.waiting()
      await worker.kill()
      // The session does not know yet; when it goes on, nobody is there to commit.
      expect(await violations(db, blog.counter)).toEqual([])
      await barrier.open()
      await waitFor(async () => value<boolean>(db.pool, 'select not exists (select from pg_stat_activity where pid = $1)', [backend]), { what: 'the end of its session' })
      const before = (round - 1) * 10
      expect(await stored(db.pool, blog)).toEqual(before === 0 ? {} : { 1: before, 2: before, 3: before })
      expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
      await tally.drain()
      expect(await stored(db.pool, blog)).toEqual({ 1: round * 10, 2: round * 10, 3: round * 10 })
    }
    await expectExact(db, tally, blog)
  })

  test(`at random moments, of several at once, loses and doubles nothing (seed ${seed})`, async () => {
    const blog = await createBlog(db, tally, { posts: 30, rest: { rotationPeriodMs: 1000 } })
    await db.pool.query(`
      create function ${blog.posts}_slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.001); return new; end $$;
      create trigger slow before update of like_count on ${blog.posts} for each row execute function ${blog.posts}_slow()`)
    const random = new Random(seed)
    {
      await using running = new AsyncDisposableStack()
      running.use(storm(db, blog, { posts: 30, writers: 2 }))
      const audits = running.use(beside(async () => {
        expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
        await sleep(20)
      }))
      const batches = async () => Number((await statusOf(db.pool, blog.counter)).batches)
      const killing = [random.fork(), random.fork()].map(async (own) => {
        for (let kill = 0; kill < 3; kill++) {
          await using worker = startCommand(db.connectionString, ['worker', '--poll-interval', '5'])
          const before = await batches()
          await worker.said('worker started')
          await waitFor(async () => (await batches()) > before, { what: 'a batch' })
          await sleep(own.upTo(100))
          await worker.kill()
        }
      })
      await Promise.all(killing)
      expect(audits.rounds).toBeGreaterThan(0)
    }
    await expectExact(db, tally, blog)
  })
})

test('the end of every connection, again and again, of workers, application and auditor: nothing is lost or doubled', async () => {
  const blog = await createBlog(db, tally, { posts: 20, rest: { rotationPeriodMs: 1000 } })
  await db.pool.query(`create index on ${blog.likes} (post_id)`)
  const pool = new pg.Pool({ connectionString: db.connectionString })
  pool.on('error', () => {})
  const own = createTally({ pool })
  const logger = recorder()
  const terminator = await db.connect()
  let audits = 0
  {
    await using running = new AsyncDisposableStack()
    running.use(own.worker({ logger, pollIntervalMs: 5 }))
    running.use(own.worker({ logger }))
    const writing = running.use(storm(db, blog, { posts: 20, reconnecting: true }))
    const found: unknown[] = []
    running.use(beside(async () => {
      // A rejection is the connection that was ended.
      await own.counter(blog.counter).reconcile().then(({ drifts }) => (audits++, found.push(...drifts)), () => {})
    }))
    await waitFor(async () => Number((await statusOf(terminator, blog.counter)).batches) > 0, { what: 'a batch' })
    for (let round = 0; round < 25; round++) {
      const [batches, written] = [Number((await statusOf(terminator, blog.counter)).batches), writing.rounds]
      await terminator.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()')
      // Each time they have come back; the last times they are not given the time.
      if (round < 10) await waitFor(async () => writing.rounds > written + 3 && Number((await statusOf(terminator, blog.counter)).batches) > batches, { what: 'batches' })
      else await sleep(15)
    }
    await waitFor(async () => audits > 3, { what: 'reconciliations' })
    expect(found).toEqual([])
  }
  await pool.end()
  await expectExact(db, tally, blog)
})

test('an immediate stop of the server in the middle of batches: what was applied is kept or done again as a whole', async (context) => {
  await using server = await dedicatedServer(context)
  await using own = await createTestDatabase(server.connectionString)
  const ownTally = await installed(own)
  const blog = await createBlog(own, ownTally, { posts: 20, rest: { rotationPeriodMs: 1000 } })
  const barrier = await createBarrier(own, blog, 2)
  {
    await using running = new AsyncDisposableStack()
    running.use(ownTally.worker({ pollIntervalMs: 5 }))
    running.use(ownTally.worker())
    const writing = running.use(storm(own, blog, { posts: 20, reconnecting: true }))
    for (let round = 0; round < 3; round++) {
      const written = writing.rounds
      await waitFor(async () => writing.rounds > written + 20, { what: 'likes' })
      await barrier.close()
      await barrier.waiting()
      await server.crash()
      await server.restart()
      // At once, and when the workers are back.
      expect(await violations(own, blog.counter)).toEqual([])
      const before = Number((await statusOf(own.pool, blog.counter)).batches)
      await waitFor(async () => Number((await statusOf(own.pool, blog.counter)).batches) > before, { what: 'batches' })
      expect(await ownTally.counter(blog.counter).audit()).toMatchObject(clean)
    }
  }
  await expectExact(own, ownTally, blog)
})

test('a row that is locked for long, by one transaction after another: the others go on, status shows it, all is added afterwards', async () => {
  const blog = await createBlog(db, tally)
  await db.pool.query(`update ${blog.posts} set like_count = 5 where id in (1, 3)`)
  const holder = await db.connect()
  await holder.query(`begin; update ${blog.posts} set title = 'held' where id in (1, 2)`)
  const carried = async () => Number((await statusOf(db.pool, blog.counter)).carried_keys)
  const waits = () => value<boolean>(db.pool, `select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%wait_for_carried%' and datname = current_database() and pid <> pg_backend_pid())`)
  for (let round = 1; round <= 3; round++) {
    // Each time another worker, which finds what the one before has carried.
    await using running = new AsyncDisposableStack()
    running.use(tally.worker({ pollIntervalMs: 5 }))
    await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + g % 4 from generate_series(0, 39) g`)
    await waitFor(async () => (await stored(db.pool, blog))[4] === round * 10, { what: 'the other posts' })
    expect(await carried()).toBe(2)
    // It stands in line for the row, and batches go on.
    await waitFor(waits, { what: 'the wait for the row' })
    await like(db.pool, blog, 5)
    await waitFor(async () => (await stored(db.pool, blog))[5] === round, { what: 'one more' })
    const measured = await tally.counter(blog.counter).reconcile()
    expect(measured.drifts.map(({ key, drift }) => [key, drift])).toEqual(round === 1 ? [['1', -5], ['3', -5]] : [])
    expect(await violations(db, blog.counter)).toEqual([])
  }
  expect(await stored(db.pool, blog)).toMatchObject({ 1: 5 })
  await holder.query('commit')
  await using running = new AsyncDisposableStack()
  running.use(tally.worker())
  // Without another like.
  await counted(db, blog, { 1: 30, 2: 30, 3: 30, 4: 30, 5: 3 })
  expect(await carried()).toBe(0)
  await expectExact(db, tally, blog)
})

test(`an application that updates posts in any order, several in a transaction, never comes into a deadlock with workers (seed ${seed})`, async () => {
  const [transactions, connections, posts] = [10_000, 5, 50]
  const blog = await createBlog(db, tally, { posts })
  // Both counters add to the same rows.
  await db.pool.query(`alter table ${blog.posts} add again integer`)
  await tally.createCounter(`${blog.counter}_again`, { queue: blog.counter, target: { table: blog.posts, key: 'id', column: 'again' } })
  const random = new Random(seed)
  const pool = new pg.Pool({ connectionString: db.connectionString })
  const workers = createTally({ pool })
  const logger = recorder()
  const deadlocks = () => value<string>(db.pool, 'select deadlocks from pg_stat_database where datname = current_database()')
  const before = await deadlocks()
  let committed = 0
  let carried = 0
  const errors: unknown[] = []
  {
    await using running = new AsyncDisposableStack()
    running.use(workers.worker({ pollIntervalMs: 1, logger }))
    running.use(workers.worker({ pollIntervalMs: 1, logger }))
    running.use(beside(async () => {
      carried = Math.max(carried, Number((await statusOf(db.pool, blog.counter)).carried_keys))
      await sleep(20)
    }))
    // Each connection has posts of its own, in any order: among themselves they cannot come into a deadlock. The workers want them all.
    const application = Array.from({ length: connections }, async (_, index) => {
      const own = random.fork()
      const client = await db.connect()
      const mine = Array.from({ length: posts / connections }, (__, n) => 1 + n * connections + index) as [number, ...number[]]
      const transaction = () => {
        const updates = Array.from({ length: 2 + own.upTo(3) }, () => `update ${blog.posts} set title = title || 'x' where id = ${own.pick(mine)};`)
        if (own.next() < 0.02) updates.splice(1, 0, 'select pg_sleep(0.003);')
        return `begin; insert into ${blog.likes} (post_id) values (${own.upTo(posts)}), (${own.upTo(posts)}); ${updates.join(' ')} ${own.next() < 0.9 ? 'commit' : 'rollback'};`
      }
      const atOnce = 10
      for (let n = 0; n < transactions / connections; n += atOnce) {
        await client.query(Array.from({ length: atOnce }, transaction).join('\n'))
        committed += atOnce
      }
      // What it counted is told at its end.
      await client.end()
    })
    for (const result of await Promise.allSettled(application)) if (result.status === 'rejected') errors.push(result.reason)
  }
  expect(errors).toEqual([])
  await pool.end()
  expect(committed).toBe(transactions)
  expect(logger.messages.filter((message) => !/worker (started|stopped)/.test(message))).toEqual([])
  expect(carried).toBeGreaterThan(0)
  expect(await deadlocks()).toBe(before)
  await expectExact(db, tally, blog)
  expect(await value(db.pool, `select count(*)::int from ${blog.posts} where again is distinct from like_count`)).toBe(0)
})

test.each([
  ['55P03', 'canceling statement due to lock timeout'],
  ['40P01', 'deadlock detected'],
  ['XX000', 'new multixact has more than one updating member: 0 2[7 (nokeyupd), 8 (nokeyupd)]'],
])('a batch that fails because of other transactions (%s) is done again at once, without an error', async (code, message) => {
  const blog = await createBlog(db, tally)
  await db.pool.query(`
    create sequence ${blog.posts}_failures;
    create function ${blog.posts}_fail() returns trigger language plpgsql as $$
      begin
        if nextval('${blog.posts}_failures') <= 3 then raise exception using errcode = '${code}', message = '${message}'; end if;
        return new;
      end $$;
    create trigger fail before update on ${blog.posts} for each row execute function ${blog.posts}_fail()`)
  const logger = recorder()
  await using running = new AsyncDisposableStack()
  running.use(tally.worker({ logger }))
  await like(db.pool, blog, 1)
  await waitFor(async () => (await stored(db.pool, blog))[1] === 1, { what: 'the like' })
  expect(await value(db.pool, `select last_value::int from ${blog.posts}_failures`)).toBe(4)
  expect(logger.messages.filter((text) => !text.includes('worker started'))).toEqual([])
})

test('a migration that holds the posts is waited for, without an error; the other counters go on', async () => {
  const [blog, other] = [await createBlog(db, tally), await createBlog(db, tally)]
  await like(db.pool, blog, 1)
  const migration = await db.connect()
  await migration.query(`begin; alter table ${blog.posts} add note text`)
  const pool = new pg.Pool({ connectionString: db.connectionString })
  const logger = recorder()
  {
    await using running = new AsyncDisposableStack()
    running.use(createTally({ pool }).worker({ logger }))
    await waitFor(async () => value<boolean>(db.pool, `select exists (select from pg_locks join pg_stat_activity using (pid) where not granted and relation = '${blog.posts}'::regclass and query like '%apply_batch%')`), { what: 'a batch that waits' })
    for (let n = 1; n <= 25; n++) {
      await like(db.pool, other, 1)
      await counted(db, other, { 1: n })
    }
    expect(logger.messages).toEqual([expect.stringContaining('worker started')])
    expect(await value(db.pool, 'select last_error from pgtally.consumer where name = $1', [blog.counter])).toBeNull()
    await migration.query('commit')
    await counted(db, blog, { 1: 1 })
  }
  await pool.end()
  await expectExact(db, tally, blog)
})

describe('a statement_timeout that is too short', () => {
  // Some milliseconds for each twentieth post.
  const slowPosts = async (blog: Blog) => {
    await db.pool.query(`
      create function ${blog.posts}_slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.004); return new; end $$;
      create trigger slow before update of like_count on ${blog.posts} for each row when (new.id % 20 = 0) execute function ${blog.posts}_slow()`)
  }
  const hurriedPool = () => new pg.Pool({ connectionString: db.connectionString, statement_timeout: 600 })

  test('for a batch: it is tried again with less, and gets through', async () => {
    const blog = await createBlog(db, tally, { posts: 6000 })
    await slowPosts(blog)
    // Each in a transaction of its own, or the batch could not be cut.
    await db.pool.query(`do $$ begin for post in 1..6000 loop insert into ${blog.likes} (post_id) values (post); commit; end loop; end $$`)
    const pool = hurriedPool()
    const logger = recorder()
    {
      await using running = new AsyncDisposableStack()
      running.use(createTally({ pool }).worker({ logger, maxBatchEvents: 6000 }))
      await said(logger, 'statement timeout')
      expect(await violations(db, blog.counter)).toEqual([])
      await waitFor(async () => (await statusOf(db.pool, blog.counter)).pending_events === '0', { what: 'the end of what is pending' })
    }
    await pool.end()
    expect(Number((await statusOf(db.pool, blog.counter)).batches)).toBeGreaterThan(1)
    await expectExact(db, tally, blog)
  })

  test('for what is carried: it is tried again with less, and gets through', async () => {
    const blog = await createBlog(db, tally, { posts: 5000 })
    await slowPosts(blog)
    await db.pool.query(`alter table ${blog.likes} disable trigger user; insert into ${blog.likes} (post_id) select id from ${blog.posts}; alter table ${blog.likes} enable trigger user`)
    expect(await tally.counter(blog.counter).reconcile()).toMatchObject({ driftingKeys: 5000 })
    const pool = hurriedPool()
    const logger = recorder()
    {
      await using running = new AsyncDisposableStack()
      running.use(createTally({ pool }).worker({ logger }))
      await said(logger, 'statement timeout')
      await like(db.pool, blog, 1)
      await waitFor(async () => (await statusOf(db.pool, blog.counter)).carried_keys === '0', { what: 'the end of what is carried' })
      await waitFor(async () => (await statusOf(db.pool, blog.counter)).pending_events === '0', { what: 'the end of what is pending' })
    }
    await pool.end()
    await expectExact(db, tally, blog)
  })
})

test('no connection to be had: workers wait and come back, callers are told, likes go on', async () => {
  const role = `pgtally_limited_${randomBytes(6).toString('hex')}`
  const own = await createTestDatabase()
  const url = new URL(own.connectionString)
  await own.pool.query(`create role ${role} login password 'limited'; grant create on schema public to ${role}; grant create on database ${url.pathname.slice(1)} to ${role}`)
  try {
    url.username = role
    url.password = 'limited'
    const pool = new pg.Pool({ connectionString: url.href, max: 5 })
    pool.on('error', () => {})
    const limited: TestDatabase = { ...own, connectionString: url.href, pool }
    const limitedTally = await installed(limited)
    const blogs = [await createBlog(limited, limitedTally), await createBlog(limited, limitedTally), await createBlog(limited, limitedTally)]
    // What the limit is for does not concern a superuser, as whom the application writes here.
    const disconnect = () => own.pool.query('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [role])
    const limit = async (connections: number) => {
      await own.pool.query(`alter role ${role} connection limit ${connections}`)
      await disconnect()
    }
    const likeAll = async () => {
      for (const blog of blogs) await like(own.pool, blog, 1)
    }
    const all = async (count: number) => {
      for (const blog of blogs) await counted(own, blog, { 1: count })
    }
    const logger = recorder()
    {
      await using running = new AsyncDisposableStack()
      running.use(limitedTally.worker({ logger }))
      await likeAll()
      await all(1)
      await limit(0)
      // More than once: a connection that was just being made is not to be seen yet.
      await waitFor(async () => {
        await disconnect()
        return logger.messages.some((message) => message.includes('too many connections'))
      }, { what: 'the refusal' })
      const command = running.use(startCommand(url.href, ['worker']))
      await command.said('too many connections')
      await likeAll()
      const refused = { code: '53300' }
      await expect(limitedTally.counter(blogs[0]?.counter ?? '').audit()).rejects.toMatchObject(refused)
      await expect(limitedTally.counter(blogs[0]?.counter ?? '').reconcile()).rejects.toMatchObject(refused)
      await expect(limitedTally.drain()).rejects.toMatchObject(refused)
      expect(await Promise.all(blogs.map((blog) => stored(own.pool, blog)))).toEqual([{ 1: 1 }, { 1: 1 }, { 1: 1 }])
      // One for all, of which each wants several.
      await limit(1)
      await all(2)
      await limit(-1)
      await command.said('worker started')
      await said(logger, 'connected to the database again')
      await likeAll()
      await all(3)
      // It is nothing that the counters would have.
      expect(logger.messages.filter((message) => message.includes('cannot go on'))).toEqual([])
      expect(await column(own.pool, 'select last_error from pgtally.consumer')).toEqual([null, null, null])
    }
    for (const blog of blogs) await expectExact(limited, limitedTally, blog)
    await pool.end()
  } finally {
    await own.drop()
    await db.pool.query(`drop role ${role}`)
  }
})
