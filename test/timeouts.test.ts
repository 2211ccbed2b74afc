import { randomBytes } from 'node:crypto'

import pg from 'pg'
import { beforeAll, expect, test } from 'vitest'

import { createTally, type Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like, statusOf, stored, value, type Blog } from './support/fixtures.ts'
import { recorder, type Recorder } from './support/recorder.ts'
import { expectExact, storm } from './support/storm.ts'

// What a DBA sets for a role or a database, of which pgtally knows nothing. That a pool of the worker's own has a short statement_timeout: see faults.test.ts.

let db: TestDatabase
let tally: Tally
let version: number

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  version = Number(await value(db.pool, `select current_setting('server_version_num')`))
  return db.drop
})

/** A worker whose role has these settings; the application's has none. */
async function withWorkerRole<T>(own: TestDatabase, settings: Readonly<Record<string, string>>, work: (worker: { tally: Tally; logger: Recorder }) => Promise<T>): Promise<T> {
  const role = `pgtally_set_${randomBytes(6).toString('hex')}`
  await own.pool.query(`create role ${role} superuser login password 'set'`)
  for (const [name, setting] of Object.entries(settings)) await own.pool.query(`alter role ${role} set ${name} = '${setting}'`)
  const url = new URL(own.connectionString)
  url.username = role
  url.password = 'set'
  const pool = new pg.Pool({ connectionString: url.href })
  pool.on('error', () => {})
  try {
    return await work({ tally: createTally({ pool }), logger: recorder() })
  } finally {
    await pool.end()
    await own.pool.query(`drop role ${role}`)
  }
}

const warnings = ({ messages }: Recorder) => messages.filter((message) => !/^worker (started|stopped)/.test(message))

/** Of each post that is updated a millisecond or more. */
async function slowPosts(blog: Blog, ms = 1): Promise<void> {
  await db.pool.query(`
    create function ${blog.posts}_slow() returns trigger language plpgsql as $$ begin perform pg_sleep(${ms / 1000}); return new; end $$;
    create trigger slow before update of like_count on ${blog.posts} for each row execute function ${blog.posts}_slow()`)
}

const roles: Record<string, string>[] = [
  { default_transaction_isolation: 'serializable' },
  { default_transaction_isolation: 'repeatable read', default_transaction_deferrable: 'on' },
  { default_transaction_read_only: 'on' },
  { synchronous_commit: 'remote_apply' },
  // Shorter than the pause between two looks.
  { idle_session_timeout: '30ms' },
]

test('workers whose roles have other defaults go on: isolation, read-only, synchronous_commit, a short life of idle sessions', async () => {
  const goesOn = async (settings: Record<string, string>) => {
    const own = await createTestDatabase()
    await using _ = own
    const blog = await createBlog(own, await installed(own), { rest: { rotationPeriodMs: 1000 } })
    await withWorkerRole(own, settings, async ({ tally: workers, logger }) => {
      await using worker = workers.worker({ logger })
      for (let n = 1; n <= 10; n++) {
        await like(own.pool, blog, 1)
        await waitFor(async () => (await stored(own.pool, blog))[1] === n, { what: `${n} likes with ${JSON.stringify(settings)}` })
      }
      // It empties slots, too.
      await waitFor(async () => value<boolean>(own.pool, `select sum(pg_relation_size(inhrelid::regclass)) = 0 from pg_inherits where inhparent = 'pgtally.event_1'::regclass`), { what: 'the slots to be emptied' })
      await worker.stop()
      // A connection that ends just when it is taken from the pool is no matter of a counter.
      const wrong = 'idle_session_timeout' in settings ? logger.messages.filter((message) => message.includes('cannot go on')) : warnings(logger)
      expect(wrong).toEqual([])
    })
    await expectExact(own, createTally({ pool: own.pool }), blog)
  }
  await Promise.all(roles.map(goesOn))
})

test('an application and a worker with other timeouts each: neither hurts the other', async () => {
  const blog = await createBlog(db, tally, { posts: 20, rest: { rotationPeriodMs: 1000 } })
  await db.pool.query(`alter database ${new URL(db.connectionString).pathname.slice(1)} set lock_timeout = '20ms'`)
  const settings = { lock_timeout: '5ms', statement_timeout: '2s', idle_in_transaction_session_timeout: '1s', ...(version < 170_000 ? {} : { transaction_timeout: '3s' }) }
  await withWorkerRole(db, settings, async ({ tally: own, logger }) => {
    {
      await using running = new AsyncDisposableStack()
      running.use(own.worker({ pollIntervalMs: 1, logger }))
      running.use(own.worker({ pollIntervalMs: 1, logger }))
      const writing = running.use(storm(db, blog, { posts: 20, reconnecting: true }))
      await waitFor(async () => writing.rounds > 500 && Number((await statusOf(db.pool, blog.counter)).batches) > 30, { what: 'a load' })
      // A row that is held for longer than any of these waits, and then is added to.
      const holder = await db.connect()
      await holder.query(`set lock_timeout = 0; begin; select from ${blog.posts} where id = 1 for no key update`)
      await like(db.pool, blog, 1)
      await waitFor(async () => Number((await statusOf(db.pool, blog.counter)).carried_keys) > 0, { what: 'something carried' })
      const [written, batches] = [writing.rounds, Number((await statusOf(db.pool, blog.counter)).batches)]
      await waitFor(async () => writing.rounds > written + 200 && Number((await statusOf(db.pool, blog.counter)).batches) > batches + 10, { what: 'a load beside it' })
      await holder.query('commit')
    }
    expect(await own.drain()).toMatchObject({ failed: [] })
    // At a loaded machine one of these may pass now and then: said, and gone on.
    expect(warnings(logger).length).toBeLessThan(20)
  })
  await db.pool.query(`alter database ${new URL(db.connectionString).pathname.slice(1)} reset lock_timeout`)
  await expectExact(db, tally, blog)
})

// One transaction's events cannot be divided, so no smaller batch will do.
test.each([
  ['statement_timeout', 0],
  ['transaction_timeout', 170_000],
])('a batch that cannot be made small enough for the %s of the worker\'s role gets the time that it takes', async (name, since) => {
  if (version < since) return
  const blog = await createBlog(db, tally, { posts: 200 })
  await slowPosts(blog)
  await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + n % 200 from generate_series(1, 3000) n`)
  await withWorkerRole(db, { [name]: '80ms' }, async ({ tally: own, logger }) => {
    {
      await using worker = own.worker({ logger, maxBatchEvents: 2000 })
      await waitFor(async () => (await statusOf(db.pool, blog.counter)).pending_events === '0' && (await statusOf(db.pool, blog.counter)).carried_keys === '0', { what: 'the end of what is pending' })
      await worker.stop()
    }
    const said = logger.messages.filter((message) => message.includes('cannot go on'))
    expect(said.some((message) => message.includes(name.replace('_', ' ')))).toBe(true)
    expect(said.length).toBeLessThan(10)
  })
  await expectExact(db, tally, blog)
})
