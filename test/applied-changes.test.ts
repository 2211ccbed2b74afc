import { setTimeout as sleep } from 'node:timers/promises'

import { beforeAll, describe, expect, test } from 'vitest'

import type { AppliedChanges, Logger, Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { Reporter } from '../src/worker/reporter.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, createBlog, installed, like, pid, stored, value, type Blog, type Session } from './support/fixtures.ts'
import { beside, expectExact, seed, startCommand, storm } from './support/storm.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** A worker's logger that keeps the warnings. */
function recorder(): Logger & { warnings: string[]; steps: string[] } {
  const warnings: string[] = []
  const steps: string[] = []
  return { warnings, steps, debug: (_, message) => void steps.push(message), info() {}, warn: (_, message) => void warnings.push(message) }
}

/** All calls for one counter, with the calls that were begun while another was under way. */
function listen(counter: string) {
  const calls: AppliedChanges[] = []
  let overlapping = 0
  let underWay = 0
  const onApplied = async (applied: AppliedChanges) => {
    if (applied.counter !== counter) return
    underWay++
    if (underWay > 1) overlapping++
    calls.push(applied)
    await sleep(calls.length % 3)
    underWay--
  }
  return { calls, onApplied, overlapping: () => overlapping }
}

/** The newest value that was told of each key, those that are 0 left out. */
const latest = (calls: readonly AppliedChanges[]) =>
  Object.fromEntries(
    calls
      .toSorted((one, other) => Number(one.version - other.version))
      .flatMap(({ changes }) => changes.map(({ key, value: count }) => [key, count] as const))
      .reduce((all, [key, count]) => (count === 0 ? (all.delete(key), all) : all.set(key, count)), new Map<string, number | bigint>()),
  )

const sorted = (versions: readonly bigint[]) => versions.toSorted((one, other) => (one < other ? -1 : 1))

/** Locks one post after another for a moment each, so that what is to be added to it is carried, and sometimes waited for. */
function locks(blog: Blog, posts: number) {
  const random = new Random(seed)
  let session: Session | undefined
  return beside(async () => {
    session ??= await db.connect()
    await session.query('begin')
    await session.query(`select from ${blog.posts} where id = $1 for no key update`, [random.upTo(posts)])
    await sleep(random.next() < 0.05 ? 1600 : 20)
    await session.query('commit')
  })
}

describe('onApplied', () => {
  test('is given the keys that were changed, with what is stored now', async () => {
    const blog = await createBlog(db, tally)
    const { calls, onApplied } = listen(blog.counter)
    await like(db.pool, blog, 1, 3)
    await like(db.pool, blog, 2)
    {
      await using worker = tally.worker({ onApplied })
      await waitFor(async () => calls.length === 1, { what: 'the first call' })
      expect(calls[0]?.changes.toSorted((one, other) => (one.key < other.key ? -1 : 1))).toEqual([{ key: '1', value: 3 }, { key: '2', value: 1 }])
      // One more, and one and one less: that changes nothing.
      await db.pool.query(`insert into ${blog.likes} (post_id) values (1); insert into ${blog.likes} (post_id) values (2); delete from ${blog.likes} where id = (select max(id) from ${blog.likes})`)
      await waitFor(async () => calls.length === 2, { what: 'the second call' })
      expect(calls[1]?.changes).toEqual([{ key: '1', value: 4 }])
      await worker.stop()
    }
    // Another process, and the counter anew.
    await using worker = createTally({ pool: db.pool }).worker({ onApplied })
    await like(db.pool, blog, 1)
    await waitFor(async () => calls.length === 3, { what: 'the third call' })
    expect(typeof calls[0]?.version).toBe('bigint')
    await worker.stop()
    expect(calls.map(({ version }) => version)).toEqual(sorted(calls.map(({ version }) => version)))
    expect(new Set(calls.map(({ version }) => version)).size).toBe(3)
    await expectExact(db, tally, blog)
  })

  test('has numbers as far as they hold a count exactly, and versions that go on when the counter is created again', async () => {
    const { calls, onApplied } = listen('large')
    for (const round of [1, 2]) {
      await tally.createCounter('large', { keyType: 'text' })
      await tally.counter('large').add(db.pool, 'safe', 2n ** 53n - 1n)
      await tally.counter('large').add(db.pool, 'unsafe', 2n ** 53n)
      await using worker = tally.worker({ onApplied })
      await waitFor(async () => calls.length === round, { what: 'the call' })
      await worker.stop()
      await tally.dropCounter('large')
      expect(latest(calls)).toEqual({ safe: 2 ** 53 - 1, unsafe: 2n ** 53n })
    }
    expect(calls[1]?.version).toBeGreaterThan(calls[0]?.version ?? 0n)
  })

  test(`tells all of what is stored in the end, in order and one call at a time, also what was packed, carried or waited for (seed ${seed})`, async () => {
    const posts = 300
    const blog = await createBlog(db, tally, { posts })
    const listeners = [listen(blog.counter), listen(blog.counter)] as const
    const reads: { key: number; count: number; version: bigint }[] = []
    const random = new Random(seed)
    await using running = new AsyncDisposableStack()
    for (const { onApplied } of listeners) running.use(tally.worker({ onApplied, pollIntervalMs: 5 }))
    const writing = running.use(storm(db, blog, { posts: 10, writers: 2 }))
    const locking = running.use(locks(blog, 3))
    const reading = running.use(
      beside(async () => {
        const key = random.upTo(10)
        reads.push({ key, ...(await tally.counter<number>(blog.counter).getVersioned(key)) })
      }),
    )
    const told = () => listeners.flatMap(({ calls }) => calls)
    const waited = () => value<boolean>(db.pool, `select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%wait_for_carried%' and datname = current_database() and pid <> pg_backend_pid())`)
    await waitFor(waited, { what: 'a worker that waits for a row' })
    // More keys than a transaction locks are packed.
    await db.pool.query(`insert into ${blog.likes} (post_id) select id from ${blog.posts}`)
    await waitFor(async () => writing.rounds > 100 && reads.length > 100 && told().length > 50, { what: 'likes, reads and calls' })
    await locking.stop()
    await writing.stop()
    await waitFor(async () => value<boolean>(db.pool, `select pending_events + carried_keys = 0 from pgtally.counter_status() where name = $1`, [blog.counter]), { what: 'all to be applied' })
    await reading.stop()
    await running.disposeAsync()
    for (const { calls, overlapping } of listeners) {
      expect(overlapping()).toBe(0)
      expect(calls.map(({ version }) => version)).toEqual(sorted(calls.map(({ version }) => version)))
    }
    expect(new Set(told().map(({ version }) => version)).size).toBe(told().length)
    expect(latest(told())).toEqual(await stored(db.pool, blog))
    // What was read is what had been told with the read's version or the last one before it.
    const wrong = reads.filter(({ key, count, version }) => (latest(told().filter((applied) => applied.version <= version))[key] ?? 0) !== count)
    expect(wrong).toEqual([])
    await expectExact(db, tally, blog)
  })

  test('of packed keys: each transaction tells its own', async () => {
    const blog = await createBlog(db, tally, { posts: 1000 })
    await db.pool.query(`insert into ${blog.likes} (post_id) select id from ${blog.posts}`)
    type Result = { version: string | null; changes: [string, string][] | null }
    const call = async (sql: string) => (await db.pool.query<Result>(`select version, changes from pgtally.${sql}`, [blog.counter])).rows[0]
    const results = [await call('apply_batch($1, max_keys => 300, report => true)')]
    for (let result = await call('apply_packed($1, 200, true)'); result?.changes !== null; result = await call('apply_packed($1, 200, true)')) results.push(result)
    expect(results.map((result) => result?.changes?.length)).toEqual([300, 200, 200, 200, 100])
    expect(new Set(results.flatMap((result) => result?.changes?.map(([key]) => key) ?? [])).size).toBe(1000)
    expect(new Set(results.map((result) => result?.version)).size).toBe(5)
    expect(await tally.counter(blog.counter).getVersioned(1)).toEqual({ count: 1, version: BigInt(results.at(-1)?.version ?? 0) })
  })

  test('that throws is told of the next change', async () => {
    const blog = await createBlog(db, tally)
    const logger = recorder()
    const seen: AppliedChanges[] = []
    await using worker = tally.worker({
      logger,
      onApplied: (applied) => {
        seen.push(applied)
        if (seen.length === 1) throw new Error('no cache')
        return seen.length === 2 ? Promise.reject(new Error('no cache')) : undefined
      },
    })
    for (const count of [1, 2, 3]) {
      await like(db.pool, blog, 1)
      await waitFor(async () => seen.length === count, { what: `call ${count}` })
    }
    expect(seen.at(-1)?.changes).toEqual([{ key: '1', value: 3 }])
    expect(logger.warnings).toEqual(Array.from({ length: 2 }, () => expect.stringContaining('onApplied failed')))
    await worker.stop()
  })

  test('that does not return holds up neither counting for long nor the end of the worker', async () => {
    const blog = await createBlog(db, tally)
    const logger = recorder()
    const seen: AppliedChanges[] = []
    const first = Promise.withResolvers<void>()
    const onApplied = (applied: AppliedChanges) => {
      seen.push(applied)
      return seen.length === 1 ? first.promise : new Promise<void>(() => {})
    }
    await using worker = tally.worker({ logger, onApplied })
    await like(db.pool, blog, 1)
    await waitFor(async () => seen.length === 1, { what: 'the call' })
    await like(db.pool, blog, 1)
    // No call for this one, as the first is still under way.
    await waitFor(async () => logger.steps.filter((step) => step === 'batch applied').length === 2, { what: 'the next batch, and that its turn to tell is over' })
    expect((await stored(db.pool, blog))[1]).toBe(2)
    expect(seen).toHaveLength(1)
    expect(logger.warnings).toEqual([expect.stringContaining('onApplied takes long')])
    first.resolve()
    await like(db.pool, blog, 1)
    await waitFor(async () => seen.length === 2, { what: 'the next call' })
    expect(seen[1]?.changes).toEqual([{ key: '1', value: 3 }])
    await worker.stop()
  })

  test('costs those nothing who do not ask for it', async () => {
    const settings = async (counter: string, work: () => Promise<unknown>) => {
      const blog = await createBlog(db, tally)
      await db.pool.query(`
        create table ${blog.posts}_log (context text, synchronous_commit text);
        create function ${blog.posts}_log() returns trigger language plpgsql as $$
        declare context text;
        begin
          get diagnostics context = pg_context;
          insert into ${blog.posts}_log values (context, current_setting('synchronous_commit'));
          return new;
        end $$;
        create trigger log before update on ${blog.posts} for each row execute function ${blog.posts}_log()`)
      await like(db.pool, blog, 1)
      await work()
      await waitFor(async () => (await stored(db.pool, blog))[1] === 1, { what: `the like of ${counter}` })
      return (await db.pool.query<{ returning: boolean; synchronous_commit: string }>(`select context ~ 'returning u' as returning, synchronous_commit from ${blog.posts}_log`)).rows
    }
    const withWorker = async (name: string, options: object) => {
      await using running = new AsyncDisposableStack()
      return await settings(name, async () => running.use(tally.worker(options)))
    }
    expect(await settings('drain', () => tally.drain())).toEqual([{ returning: false, synchronous_commit: 'off' }])
    expect(await withWorker('a worker', {})).toEqual([{ returning: false, synchronous_commit: 'off' }])
    expect(await withWorker('notify', { notify: true })).toEqual([{ returning: false, synchronous_commit: 'on' }])
    expect(await withWorker('onApplied', { onApplied: () => {} })).toEqual([{ returning: true, synchronous_commit: 'on' }])
  })
})

describe('the turns of one counter', () => {
  const applied = (version: bigint): AppliedChanges => ({ counter: 'c', version, changes: [{ key: '1', value: 1 }] })

  test('are those of the versions, in whatever order the answers to the commits arrive', async () => {
    const seen: bigint[] = []
    const reporter = new Reporter(({ version }) => void seen.push(version), recorder())
    const [first, second, third] = [reporter.takeTurn(), reporter.takeTurn(), reporter.takeTurn()]
    const ended = [third(applied(3n)), second()]
    await sleep(1)
    expect(seen).toEqual([])
    await Promise.all([first(applied(1n)), ...ended])
    expect(seen).toEqual([1n, 3n])
  })
})

describe('waiting for a row, with somebody to be told', () => {
  const lockPost = async (blog: Blog) => {
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for no key update`)
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    return holder
  }

  test('takes the consumer only when it has the row, so batches go on', async () => {
    const blog = await createBlog(db, tally)
    const holder = await lockPost(blog)
    const waiter = await db.connect()
    const waiterPid = await pid(waiter)
    const waiting = waiter.query<{ version: string; changes: unknown }>(`select version, changes from pgtally.wait_for_carried($1, interval '0', interval '20 seconds', report => true)`, [blog.counter])
    await blocked(db, waiterPid)
    await like(db.pool, blog, 2)
    await applyAll(db.pool, blog.counter)
    expect(await stored(db.pool, blog)).toEqual({ 2: 1 })
    const { version: before } = await tally.counter(blog.counter).getVersioned(1)
    await holder.query('commit')
    const { rows } = await waiting
    expect(rows).toEqual([{ version: expect.any(String), changes: [['1', '1']] }])
    expect(BigInt(rows[0]?.version ?? 0)).toBeGreaterThan(before)
    expect(await tally.counter(blog.counter).getVersioned(1)).toEqual({ count: 1, version: BigInt(rows[0]?.version ?? 0) })
  })

  test('gives the row back when a batch keeps the consumer', async () => {
    const blog = await createBlog(db, tally)
    const holder = await lockPost(blog)
    await holder.query('commit')
    const batch = await db.connect()
    await batch.query('begin')
    await batch.query('select pgtally.lock_counter($1)', [blog.counter])
    const waiter = await db.connect()
    await waiter.query('begin')
    expect(await value(waiter, `select added from pgtally.wait_for_carried($1, interval '0', report => true)`, [blog.counter])).toBe(false)
    expect(await value(db.pool, `select count(*)::int from (select from ${blog.posts} where id = 1 for no key update skip locked) free`)).toBe(1)
    await waiter.query('rollback')
    await batch.query('commit')
    expect(await value(waiter, `select added from pgtally.wait_for_carried($1, interval '0', notify => true)`, [blog.counter])).toBe(true)
    expect(await stored(db.pool, blog)).toEqual({ 1: 1 })
  })
})

describe('notify', () => {
  const hear = async (channel: string) => {
    const listener = await db.connect()
    const heard: { counter: string; version: string }[] = []
    listener.on('notification', ({ payload }) => heard.push(JSON.parse(payload ?? '') as { counter: string; version: string }))
    await listener.query(`listen ${channel}`)
    /** All that was sent before this has been heard then. */
    const settled = async () => {
      const mark = `{"mark": ${Math.random()}}`
      await db.pool.query('select pg_notify($1, $2)', [channel, mark])
      await waitFor(async () => heard.some((payload) => JSON.stringify(payload) === JSON.stringify(JSON.parse(mark))), { what: 'the mark' })
      return heard.filter(({ counter }) => counter !== undefined)
    }
    return settled
  }

  test('says once for each commit which counter has a new version', async () => {
    const blog = await createBlog(db, tally)
    const settled = await hear('pgtally')
    await like(db.pool, blog, 1)
    await tally.drain()
    expect(await settled()).toEqual([])
    await db.pool.query(`insert into ${blog.likes} (post_id) select id from ${blog.posts}`)
    await db.pool.query('select pgtally.apply_batch($1, notify => true)', [blog.counter])
    const { version } = await tally.counter(blog.counter).getVersioned(1)
    expect(await settled()).toEqual([{ counter: blog.counter, version: String(version) }])
    // Nothing was changed.
    await db.pool.query('select pgtally.apply_batch($1, notify => true), pgtally.apply_carried($1, notify => true), pgtally.apply_packed($1, notify => true)', [blog.counter])
    expect(await settled()).toHaveLength(1)
  })

  test('by a worker, a command, and in another schema', async () => {
    const other = createTally({ pool: db.pool, schema: 'elsewhere' })
    await other.install()
    await other.createCounter('views', { keyType: 'text' })
    const [here, there] = [await hear('pgtally'), await hear('elsewhere')]
    await tally.createCounter('noted', { keyType: 'text' })
    {
      await using running = new AsyncDisposableStack()
      running.use(other.worker({ notify: true }))
      await other.counter('views').add(db.pool, '/')
      await waitFor(async () => (await there()).length === 1, { what: 'a notification' })
      expect(await there()).toEqual([{ counter: 'views', version: expect.stringMatching(/^\d+$/) }])
    }
    await using command = startCommand(db.connectionString, ['worker', '--notify'])
    await command.said('worker started')
    await tally.counter('noted').add(db.pool, '/')
    await waitFor(async () => (await here()).some(({ counter }) => counter === 'noted'), { what: 'a notification of the command' })
    expect(() => tally.worker({ notify: 'yes' as never })).toThrow(/notify/)
  })
})
