import { setTimeout as sleep } from 'node:timers/promises'

import { PgBoss } from 'pg-boss'
import { beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'

import type { ConsumerDefinition, Tally } from '../src/index.ts'
import { jobs, milestoneJobs, scheduleMaintenance } from '../src/pg-boss.ts'
import type { MaintenanceReport } from '../src/pg-boss.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { column, createBlog, installed, like, value } from './support/fixtures.ts'
import { startScript } from './support/scripts.ts'
import { seed } from './support/storm.ts'

let db: TestDatabase
let tally: Tally
let boss: PgBoss

/** One that only does what it is told. */
async function startBoss({ connectionString }: { connectionString: string }, schema = 'pgboss'): Promise<PgBoss & AsyncDisposable> {
  const started = new PgBoss({ connectionString, schema, max: 4, supervise: false, schedule: false })
  started.on('error', () => {})
  await started.start()
  return Object.assign(started, { [Symbol.asyncDispose]: () => started.stop({ graceful: false }) })
}

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  boss = await startBoss(db)
  return async () => {
    await boss.stop({ graceful: false })
    await db.drop()
  }
})

let queues = 0

/** A queue with a registered consumer `c`, and a job queue of the same name. */
async function createQueues(options: { policy?: string } = {}): Promise<string> {
  const queue = `queue_${++queues}`
  await tally.createQueue(queue)
  await tally.queue(queue).register('c')
  await boss.createQueue(queue, options)
  return queue
}

const insertMany = (queue: string, count: number) => db.pool.query('select pgtally.insert_event($1::text, n::text) from generate_series(1, $2::int) n', [queue, count])
const statusOf = async (queue: string) => (await tally.status()).consumers.find((consumer) => consumer.queue === queue)
const finished = (queue: string) => waitFor(async () => (await statusOf(queue))?.pendingEvents === 0, { what: 'a sender that has finished everything' })
const errorOf = (queue: string) => waitFor(async () => (await statusOf(queue))?.lastError ?? undefined, { what: 'an error' })
const jobData = (queue: string) => column<Record<string, unknown>>(db.pool, 'select data from pgboss.job where name = $1 order by created_on, data::text', [queue])
const start = <S extends z.ZodType>(definition: ConsumerDefinition<S, 'transactional'>) => tally.consumer({ pollIntervalMs: 5, ...definition } as typeof definition)

describe('jobs()', () => {
  test('sends the event itself, where nothing else is asked for', async () => {
    const queue = await createQueues()
    await tally.queue(queue).insert(db.pool, { key: 7, delta: -2, data: { user: 1 } })
    await using sender = start(jobs({ queue, name: 'c', boss, jobQueue: queue }))
    void sender
    await finished(queue)
    expect(await jobData(queue)).toEqual([{ id: expect.stringMatching(/^\d+\./), time: expect.stringMatching(/^\d{4}-.*Z$/), key: '7', delta: -2, data: { user: 1 } }])
  })

  test('sends what toJob makes of an event, with options of pg-boss, or nothing', async () => {
    const queue = await createQueues({ policy: 'key_strict_fifo' })
    for (const user of [1, 2, 3]) await tally.queue(queue).insert(db.pool, { key: 7, data: { user } })
    const schema = z.object({ user: z.number() })
    const toJob = ({ key, data }: { key: string; data: { user: number } }) => (data.user === 2 ? undefined : { data: { post: key, by: data.user }, priority: data.user, singletonKey: key })
    await using sender = start(jobs({ queue, name: 'c', schema, boss, jobQueue: queue, toJob }))
    void sender
    await finished(queue)
    const { rows } = await db.pool.query('select data, priority, singleton_key from pgboss.job where name = $1 order by priority', [queue])
    expect(rows).toEqual([
      { data: { post: '7', by: 1 }, priority: 1, singleton_key: '7' },
      { data: { post: '7', by: 3 }, priority: 3, singleton_key: '7' },
    ])
  })

  test('sends in the transaction that finishes the batch: none before, none when that fails, all with it', async () => {
    const queue = await createQueues()
    await insertMany(queue, 12_000)
    const definition = jobs({ queue, name: 'c', boss, jobQueue: queue })
    const attempts: number[] = []
    await using sender = start({
      ...definition,
      maxEvents: 20_000,
      handler: async (batch: never) => {
        await definition.handler?.(batch)
        attempts.push((await jobData(queue)).length)
        if (attempts.length === 1) throw new Error('not today')
      },
    } as typeof definition)
    void sender
    await finished(queue)
    expect(attempts).toEqual([0, 0])
    expect(await value(db.pool, `select count(distinct data->>'key')::int from pgboss.job where name = $1`, [queue])).toBe(12_000)
    expect(await value(db.pool, 'select count(*)::int from pgboss.job where name = $1', [queue])).toBe(12_000)
  })

  test('works with pg-boss in another schema', async () => {
    const queue = await createQueues()
    await using other = await startBoss(db, 'jobs')
    await other.createQueue(queue)
    await insertMany(queue, 3)
    await using sender = start(jobs({ queue, name: 'c', boss: other, jobQueue: queue }))
    void sender
    await finished(queue)
    expect(await column(db.pool, `select data->>'key' from jobs.job order by 1`)).toEqual(['1', '2', '3'])
  })

  test('refuses a pg-boss in another database, even with the same queue, and loses nothing', async () => {
    const queue = await createQueues()
    await using elsewhere = await createTestDatabase()
    await using other = await startBoss(elsewhere)
    await other.createQueue(queue)
    await insertMany(queue, 3)
    await using sender = start(jobs({ queue, name: 'c', boss: other, jobQueue: queue }))
    void sender
    expect(await errorOf(queue)).toMatch(/^pg-boss uses the database "pgtally_test_\w+" .* pgtally "pgtally_test_\w+": .*same database/)
    expect(await statusOf(queue)).toMatchObject({ pendingEvents: 3, deadLetters: 0 })
    expect(await jobData(queue)).toEqual([])
  })

  test('names a job queue that is not there, and goes on when it is', async () => {
    const queue = await createQueues()
    await insertMany(queue, 3)
    await using sender = start(jobs({ queue, name: 'c', boss, jobQueue: `${queue}-later` }))
    void sender
    expect(await errorOf(queue)).toBe(`pg-boss has no queue "${queue}-later". Call boss.createQueue('${queue}-later') first`)
    await boss.createQueue(`${queue}-later`)
    await finished(queue)
    expect(await jobData(`${queue}-later`)).toHaveLength(3)
  })

  test('refuses a policy that leaves out jobs, and loses nothing', async () => {
    const queue = await createQueues({ policy: 'short' })
    await insertMany(queue, 3)
    await using sender = start(jobs({ queue, name: 'c', boss, jobQueue: queue }))
    void sender
    expect(await errorOf(queue)).toMatch(/took 1 of 3 jobs for its queue "queue_\d+": its policy/)
    expect(await statusOf(queue)).toMatchObject({ pendingEvents: 3 })
    expect(await jobData(queue)).toEqual([])
  })
})

describe('milestoneJobs()', () => {
  const insertMilestone = (counter: string, key: number, threshold: number) =>
    tally.queue(`${counter}.milestones`).insert(db.pool, { key, delta: 1, data: { threshold, value: threshold + 3 } })

  test('sends a job for each milestone, by a consumer named after the job queue', async () => {
    const queue = 'posts.milestones'
    await tally.createQueue(queue)
    await tally.queue(queue).register('pg-boss:posts')
    await boss.createQueue('posts')
    await insertMilestone('posts', 42, 1000)
    await tally.queue(queue).insert(db.pool, { key: 43, data: 'nonsense' })
    await using sender = start(milestoneJobs({ counter: 'posts', boss, jobQueue: 'posts' }))
    void sender
    await finished(queue)
    expect(await jobData('posts')).toEqual([{ counter: 'posts', key: '42', threshold: 1000, value: 1003 }])
    expect(await tally.queue(queue).deadLetters('pg-boss:posts')).toMatchObject([{ key: '43', reason: expect.stringMatching(/^data: /) }])
  })

  test(`each milestone becomes one job that is done once, whichever process is killed (seed ${seed})`, { timeout: 180_000 }, async () => {
    await using own = await createTestDatabase()
    const ownTally = await installed(own)
    await own.pool.query('create table congratulations (job uuid, key text, threshold bigint)')
    await using ownBoss = await startBoss(own)
    // A job of a worker that was killed is done again after this time.
    await ownBoss.createQueue('congratulate', { expireInSeconds: 1, retryLimit: 1000, retryDelay: 0 })
    const queue = 'likes.milestones'
    await ownTally.createQueue(queue)
    await ownTally.queue(queue).register('pg-boss:congratulate')
    const random = new Random(seed)
    const run = (role: string) => startScript(new URL('support/pg-boss-process.ts', import.meta.url), role, own.connectionString)
    const rounds = 6
    await using worker = run('worker')
    for (let round = 1; round <= rounds; round++) {
      for (let transaction = 1; transaction <= 10; transaction++) {
        await own.pool.query(`select pgtally.insert_event($1::text, n::text, 1, jsonb_build_object('threshold', $2::int, 'value', $2::int + n)) from generate_series(1, 20) n`, [queue, round * 100 + transaction])
      }
      await using sender = run('sender')
      await using killed = run('worker')
      await Promise.all([sender.said('started'), killed.said('started')])
      await sleep(random.upTo(150))
      await Promise.all([sender.kill(), killed.kill()])
    }
    await using sender = run('sender')
    await waitFor(async () => (await ownTally.status()).consumers[0]?.pendingEvents === 0, { what: 'a sender that has finished everything' })
    await sender.kill()
    const count = (sql: string) => value<number>(own.pool, `select count(*)::int from ${sql}`)
    await waitFor(async () => (await count(`pgboss.job where name = 'congratulate' and state <> 'completed'`)) === 0, { what: 'all jobs to be done' })
    await worker.kill()
    expect(await count(`pgboss.job where name = 'congratulate'`)).toBe(rounds * 200)
    expect(await count(`(select distinct data->>'key', data->>'threshold' from pgboss.job where name = 'congratulate') d`)).toBe(rounds * 200)
    expect(await count('congratulations')).toBe(rounds * 200)
    expect(await count('(select distinct job from congratulations) d')).toBe(rounds * 200)
  })
})

describe('scheduleMaintenance()', () => {
  /** A database of its own, as all counters are looked at. */
  async function startMaintenance() {
    const own = await createTestDatabase()
    const ownTally = await installed(own)
    const ownBoss = await startBoss(own)
    const reports: MaintenanceReport[] = []
    const run = async (task: string) => {
      const id = (await ownBoss.send(`pgtally-${task}`)) ?? ''
      return waitFor(async () => { const [job] = await ownBoss.findJobs(`pgtally-${task}`, { id }); return job?.state === 'completed' || job?.state === 'failed' ? job : undefined }, { what: `the ${task}` })
    }
    const schedule = (options = {}) => scheduleMaintenance(ownBoss, ownTally, { onReport: (report) => reports.push(report), ...options })
    return { own, ownTally, ownBoss, reports, run, schedule, [Symbol.asyncDispose]: async () => { await ownBoss[Symbol.asyncDispose](); await own.drop() } }
  }

  test('has pg-boss run both, at the times that were given last', async () => {
    await using maintenance = await startMaintenance()
    const schedules = async () => (await maintenance.ownBoss.getSchedules()).map(({ name, cron, timezone }) => `${name} ${cron} ${timezone}`).toSorted()
    await maintenance.schedule()
    expect(await schedules()).toEqual(['pgtally-audit 0 3 * * * UTC', 'pgtally-reconcile-dry-run 0 5 * * 0 UTC'])
    await maintenance.schedule({ audit: '30 1 * * *', timeZone: 'Europe/Berlin' })
    expect(await schedules()).toEqual(['pgtally-audit 30 1 * * * Europe/Berlin', 'pgtally-reconcile-dry-run 0 5 * * 0 Europe/Berlin'])
  })

  test('reports, and fails a job that finds drift, without trying it again', { timeout: 120_000 }, async () => {
    await using maintenance = await startMaintenance()
    const { own, ownTally, reports, run } = maintenance
    const [one, two] = [await createBlog(own, ownTally), await createBlog(own, ownTally)]
    await ownTally.createCounter('without_source', {})
    await like(own.pool, one, 1, 3)
    await ownTally.drain()
    await maintenance.schedule()
    expect(await run('audit')).toMatchObject({ state: 'completed', output: { counters: [{ counter: one.counter, checkedKeys: 10 }, { counter: two.counter, checkedKeys: 10 }] } })
    expect(await run('reconcile-dry-run')).toMatchObject({ state: 'completed' })
    await own.pool.query(`update ${two.posts} set like_count = case id when 3 then 1 else -2 end where id in (3, 4)`)
    expect(await run('audit')).toMatchObject({
      state: 'failed',
      retryCount: 0,
      output: { message: `Counter "${two.counter}": 2 of 10 keys drift. See: pgtally reconcile ${two.counter} --dry-run.` },
    })
    await own.pool.query(`update ${one.posts} set like_count = 100 + id`)
    expect(await run('reconcile-dry-run')).toMatchObject({
      state: 'failed',
      output: { message: expect.stringMatching(new RegExp(`^Counter "${one.counter}": pgtally reconcile ${one.counter} would correct 1 by -98, .*10 by -110\\. Counter "${two.counter}": .* would correct 3 by -1, 4 by \\+2\\.$`)) },
    })
    expect(await value(own.pool, `select like_count::int from ${two.posts} where id = 3`)).toBe(1)
    expect(reports.map(({ task, measurements }) => [task, ...measurements.map(({ driftingKeys }) => driftingKeys)])).toEqual([
      ['audit', 0, 0],
      ['reconcile-dry-run', 0, 0],
      ['audit', 0, 2],
      ['reconcile-dry-run', 10, 2],
    ])
  })

  test('names no more than ten keys, and a counter that cannot be audited keeps no other from it', { timeout: 120_000 }, async () => {
    await using maintenance = await startMaintenance()
    const { own, ownTally, run } = maintenance
    const [broken, blog] = [await createBlog(own, ownTally), await createBlog(own, ownTally, { posts: 12 })]
    await own.pool.query(`drop table ${broken.likes}; update ${blog.posts} set like_count = 1`)
    await maintenance.schedule()
    expect(await run('reconcile-dry-run')).toMatchObject({
      state: 'failed',
      output: { message: expect.stringMatching(new RegExp(`^Counter "${broken.counter}" cannot be audited: .*\\. Counter "${blog.counter}": .*1 by -1, .*10 by -1 and 2 more\\.$`)) },
    })
  })
})
