import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import type { Logger, Tally, Worker } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like, outcome, statusOf, stored, value, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** Collects what a worker says. */
function recorder(): Logger & { messages: string[] } {
  const messages: string[] = []
  const note = (details: object, message: string) => messages.push(`${message} ${JSON.stringify(details)}`)
  return { messages, debug() {}, info: note, warn: note }
}

const said = (logger: { messages: string[] }, what: string) => waitFor(async () => logger.messages.some((message) => message.includes(what)), { what: `"${what}"` })
const counted = (blog: Blog, counts: Record<string, number>) =>
  waitFor(async () => JSON.stringify(await stored(db.pool, blog)) === JSON.stringify(counts), { what: `${blog.counter}: ${JSON.stringify(counts)}` })

test('stop(), an AbortSignal and asyncDispose end it; the pool stays open', async () => {
  const pool = new pg.Pool({ connectionString: db.connectionString, max: 3 })
  const own = createTally({ pool })
  const blog = await createBlog(db, tally)
  const abort = new AbortController()
  const aborted = own.worker({ signal: abort.signal })
  const stopped = own.worker()
  let disposed: Worker
  {
    await using worker = own.worker()
    disposed = worker
    await like(db.pool, blog, 1)
    await counted(blog, { 1: 1 })
  }
  await disposed.done
  await stopped.stop()
  await stopped.stop()
  abort.abort()
  await aborted.done
  await own.worker({ signal: abort.signal }).done
  expect(await value(pool, 'select 1')).toBe(1)
  expect(pool.listenerCount('error')).toBe(0)
  await pool.end()
})

test('one connection is enough', async () => {
  const pool = new pg.Pool({ connectionString: db.connectionString, max: 1 })
  const blogs = [await createBlog(db, tally), await createBlog(db, tally)]
  {
    await using running = new AsyncDisposableStack()
    running.use(createTally({ pool }).worker())
    for (const blog of blogs) await like(db.pool, blog, 1, 2)
    for (const blog of blogs) await counted(blog, { 1: 2 })
  }
  expect(pool.totalCount).toBe(1)
  await pool.end()
})

test('survives the end of all its connections', async () => {
  const pool = new pg.Pool({ connectionString: db.connectionString, application_name: 'victim' })
  const blog = await createBlog(db, tally)
  const logger = recorder()
  {
    await using running = new AsyncDisposableStack()
    running.use(createTally({ pool }).worker({ logger }))
    for (let n = 1; n <= 5; n++) {
      await like(db.pool, blog, 1)
      await db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'victim'`)
      await counted(blog, { 1: n })
    }
  }
  expect(await violations(db, blog.counter)).toEqual([])
  await pool.end()
})

test('a pool that was ended ends it', async () => {
  const pool = new pg.Pool({ connectionString: db.connectionString })
  const { promise: warned, resolve } = Promise.withResolvers<string>()
  const logger = recorder()
  const worker = createTally({ pool }).worker({ logger: { ...logger, warn: (_, message) => resolve(message) } })
  await said(logger, 'worker started')
  await pool.end()
  const ended = await Promise.race([outcome(worker.done), warned])
  await outcome(worker.stop())
  expect(ended).toBeInstanceOf(Error)
})

test('two of them share the work of several counters', async () => {
  const blogs = await Promise.all(Array.from({ length: 4 }, () => createBlog(db, tally)))
  await using running = new AsyncDisposableStack()
  running.use(tally.worker({ pollIntervalMs: 5 }))
  running.use(tally.worker({ pollIntervalMs: 5 }))
  for (let n = 0; n < 20; n++) for (const blog of blogs) await like(db.pool, blog, 1 + (n % 2))
  for (const blog of blogs) {
    await counted(blog, { 1: 10, 2: 10 })
    expect(await violations(db, blog.counter)).toEqual([])
  }
})

describe('a locked row', () => {
  test('is added after the lock has gone, without another like', async () => {
    const blog = await createBlog(db, tally)
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for no key update`)
    await using running = new AsyncDisposableStack()
    running.use(tally.worker())
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 2)
    await counted(blog, { 2: 1 })
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: '1' })
    expect(await violations(db, blog.counter)).toEqual([])
    await holder.query('commit')
    await counted(blog, { 1: 1, 2: 1 })
  })
})

// Three transactions hand the row on: there is always one that has it and one that waits for it, so nobody finds it free.
test('a row that is always locked gets its turn, and the others go on', async () => {
  const blog = await createBlog(db, tally)
  const stopping = new AbortController()
  const holders = await Promise.all([1, 2, 3].map(() => db.connect()))
  const holding = holders.map(async (holder) => {
    while (!stopping.signal.aborted) {
      await holder.query('begin')
      await holder.query(`select from ${blog.posts} where id = 1 for no key update`)
      await holder.query('select pg_sleep(0.1)')
      await holder.query('commit')
    }
  })
  try {
    await waitFor(async () => (await value<string>(db.pool, `select count(*) from pg_locks where locktype = 'tuple' and database = (select oid from pg_database where datname = current_database())`)) !== '0', { what: 'a line for the row' })
    await using running = new AsyncDisposableStack()
    running.use(tally.worker())
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 2)
    await counted(blog, { 2: 1 })
    await counted(blog, { 1: 1, 2: 1 })
    expect(await violations(db, blog.counter)).toEqual([])
  } finally {
    stopping.abort()
    await Promise.all(holding)
  }
})

describe('a broken counter says why and waits; the others go on; mended it catches up', () => {
  const breakages: [what: string, options: { countColumn?: string }, ruin: (blog: Blog) => string, mend: (blog: Blog) => string, says: RegExp][] = [
    ['a dropped target column', {}, ({ posts }) => `alter table ${posts} drop like_count`, ({ posts }) => `alter table ${posts} add like_count bigint not null default 0`, /like_count/],
    ['an int4 overflow', { countColumn: 'like_count integer not null default 0' }, ({ posts }) => `update ${posts} set like_count = 2147483647`, ({ posts }) => `update ${posts} set like_count = 0`, /integer/],
    ['a CHECK', {}, ({ posts }) => `alter table ${posts} add constraint few check (like_count < 1)`, ({ posts }) => `alter table ${posts} drop constraint few`, /few/],
    ['a trigger', {}, ({ posts }) => `create function ${posts}_no() returns trigger language plpgsql as 'begin raise ''not today''; return new; end'; create trigger no before update on ${posts} for each row execute function ${posts}_no()`.replace("raise ''", "raise exception ''"), ({ posts }) => `drop function ${posts}_no cascade`, /not today/],
  ]
  for (const [what, options, ruin, mend, says] of breakages) {
    test(`by ${what}`, async () => {
      const [broken, sound] = [await createBlog(db, tally, options), await createBlog(db, tally)]
      await db.pool.query(ruin(broken))
      await using running = new AsyncDisposableStack()
      running.use(tally.worker())
      await like(db.pool, broken, 1)
      await waitFor(async () => (await statusOf(db.pool, broken.counter)).last_error !== null, { what: 'the error' })
      expect(await statusOf(db.pool, broken.counter)).toMatchObject({ last_error: expect.stringMatching(says), pending_events: '1' })
      await like(db.pool, sound, 1)
      await counted(sound, { 1: 1 })
      expect(await statusOf(db.pool, sound.counter)).toMatchObject({ last_error: null })
      await db.pool.query(mend(broken))
      await waitFor(async () => (await statusOf(db.pool, broken.counter)).last_error === null, { what: 'the end of the error' })
      await counted(broken, { 1: 1 })
    })
  }

  test('a dropped target table: the error says which', async () => {
    const [broken, sound] = [await createBlog(db, tally), await createBlog(db, tally)]
    await using running = new AsyncDisposableStack()
    running.use(tally.worker())
    await db.pool.query(`drop table ${broken.posts} cascade`)
    await like(db.pool, broken, 1)
    await like(db.pool, sound, 1)
    await counted(sound, { 1: 1 })
    const error = await waitFor(async () => (await statusOf(db.pool, broken.counter)).last_error ?? undefined, { what: 'the error' })
    expect(error).toMatch(/table.*(does not exist|dropped|gone)/i)
    await tally.dropCounter(broken.counter)
  })

  test('a CHECK that only a cut batch runs into', async () => {
    const blog = await createBlog(db, tally, { countColumn: 'like_count bigint not null default 0 check (like_count >= 0)' })
    const deleter = await db.connect()
    await deleter.query('begin; select pg_current_xact_id()')
    await like(db.pool, blog, 1, 2)
    await deleter.query(`delete from ${blog.likes} where id = (select min(id) from ${blog.likes})`)
    await deleter.query('commit')
    await like(db.pool, blog, 2)
    await using running = new AsyncDisposableStack()
    running.use(tally.worker({ maxBatchEvents: 1 }))
    await counted(blog, { 1: 1, 2: 1 })
    await waitFor(async () => (await statusOf(db.pool, blog.counter)).last_error === null, { what: 'no error' })
    expect(await violations(db, blog.counter)).toEqual([])
  })

  test('the error is gone after it has been mended while no worker ran', async () => {
    const blog = await createBlog(db, tally)
    await db.pool.query(`alter table ${blog.posts} add constraint few check (like_count < 1)`)
    await like(db.pool, blog, 1)
    {
      await using running = new AsyncDisposableStack()
      running.use(tally.worker())
      await waitFor(async () => (await statusOf(db.pool, blog.counter)).last_error !== null, { what: 'the error' })
    }
    await db.pool.query(`alter table ${blog.posts} drop constraint few`)
    await using running = new AsyncDisposableStack()
    running.use(tally.worker())
    await counted(blog, { 1: 1 })
    await like(db.pool, blog, 1)
    await counted(blog, { 1: 2 })
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ last_error: null })
  })

  test('the error is gone after drain() has applied all', async () => {
    const blog = await createBlog(db, tally)
    await db.pool.query(`alter table ${blog.posts} add constraint few check (like_count < 1)`)
    await like(db.pool, blog, 1)
    await using worker = tally.worker()
    await waitFor(async () => (await statusOf(db.pool, blog.counter)).last_error !== null, { what: 'the error' })
    await worker.stop()
    await db.pool.query(`alter table ${blog.posts} drop constraint few`)
    expect((await tally.drain()).failed.map(({ counter }) => counter)).not.toContain(blog.counter)
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ last_error: null })
  })

  test('another worker that has the counter does not make it sound', async () => {
    const blog = await createBlog(db, tally)
    await db.pool.query(`alter table ${blog.posts} add constraint few check (like_count < 1)`)
    await like(db.pool, blog, 1)
    const pool = new pg.Pool({ connectionString: db.connectionString })
    let attempts = 0
    pool.on('connect', (client) => {
      const query = client.query.bind(client) as (...given: unknown[]) => unknown
      const counting = (...given: unknown[]) => {
        const [text, values] = given
        if (String(text).includes('apply_batch') && Array.isArray(values) && values[0] === blog.counter) attempts++
        return query(...given)
      }
      Object.assign(client, { query: counting })
    })
    const logger = recorder()
    {
      await using running = new AsyncDisposableStack()
      running.use(createTally({ pool }).worker({ logger }))
      await said(logger, 'cannot go on')
      // As another worker has it for the length of a batch.
      const other = await db.connect()
      const locked = () => value<boolean>(other, 'select (pgtally.lock_counter($1)).counter_id is not null', [blog.counter])
      await other.query('begin')
      await waitFor(locked, { what: 'the lock' })
      attempts = 0
      // It tries again and again, or stands in line to write down that all is well.
      const waits = () => value<boolean>(other, 'select exists (select from pg_stat_activity where pg_backend_pid() = any (pg_blocking_pids(pid)))')
      await waitFor(async () => attempts >= 2 || (await waits()), { what: 'two attempts' })
      await other.query('rollback')
    }
    await pool.end()
    expect(logger.messages.filter((message) => message.includes('goes on'))).toEqual([])
    expect((await statusOf(db.pool, blog.counter)).pending_events).toBe('1')
  })
})

test('a counter of another cluster is reported, the others go on', async () => {
  const [moved, sound] = [await createBlog(db, tally), await createBlog(db, tally)]
  await db.pool.query(
    `with moved as (update pgtally.consumer set system_identifier = system_identifier + 1 where queue_id = pgtally.queue_id($1) returning consumer_id)
    update pgtally.batch b set start_boundary = '9000000000:9000000000:', end_boundary = '9000000000:9000000000:'
    from moved where b.consumer_id = moved.consumer_id`,
    [moved.counter],
  )
  await using running = new AsyncDisposableStack()
  running.use(tally.worker())
  await like(db.pool, moved, 1)
  await like(db.pool, sound, 1)
  await counted(sound, { 1: 1 })
  await waitFor(async () => (await statusOf(db.pool, moved.counter)).last_error !== null, { what: 'the error' })
  expect(await statusOf(db.pool, moved.counter)).toMatchObject({ last_error: expect.stringContaining('another database cluster'), pending_events: '1' })
})
