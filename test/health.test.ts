import pg from 'pg'
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest'

import { Health } from '../src/http/health.ts'
import { createTally, type Tally } from '../src/index.ts'
import { Known } from '../src/known.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like, outcome } from './support/fixtures.ts'
import { startProxy } from './support/proxy.ts'
import { scrape, served } from './support/scrape.ts'

let db: TestDatabase
let tally: Tally
let pool: pg.Pool
let own: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

beforeEach(() => {
  pool = new pg.Pool({ connectionString: db.connectionString })
  own = createTally({ pool })
})
afterEach(() => pool.end())

async function ask({ url }: { url: string }, path: string) {
  const response = await fetch(`${url}${path}`)
  return { status: response.status, body: await response.text() }
}

const ready = (http: { url: string }) => waitFor(async () => (await ask(http, '/readyz')).status === 200, { what: 'readiness' })
const ok = { status: 200, body: 'ok\n' }

test('a database that is away: not ready, and why; alive; metrics are what was last known', async () => {
  const blog = await createBlog(db, tally)
  await using running = new AsyncDisposableStack()
  const proxy = await startProxy(db.connectionString)
  const away = new pg.Pool({ connectionString: proxy.connectionString })
  running.defer(() => away.end())
  const worker = running.use(createTally({ pool: away }).worker())
  const http = running.use(await served(createTally({ pool: away }), [worker]))
  await ready(http)
  await like(db.pool, blog, 1)
  await waitFor(async () => (await scrape(http)).value('pgtally_events_total', { counter: blog.counter }) === 1, { what: 'the event' })
  await proxy[Symbol.asyncDispose]()
  const refused = await waitFor(async () => (await ask(http, '/readyz')).status === 503 && ask(http, '/readyz'), { what: 'the end of readiness' })
  expect(refused.body).toMatch(/^The database cannot be used/)
  await waitFor(async () => (await scrape(http)).value('pgtally_worker_failed_rounds_total') !== 0, { what: 'a failed round' })
  const { value } = await waitFor(async () => {
    const found = await scrape(http)
    return found.value('pgtally_database_up') === 0 && found
  }, { what: 'a scrape without database' })
  expect(value('pgtally_events_total', { counter: blog.counter })).toBe(1)
  expect(value('pgtally_status_age_seconds')).toBeGreaterThan(0)
  expect(await ask(http, '/healthz')).toEqual(ok)
})

test('a database that hangs: what is asked for comes all the same, from one connection however many ask', async () => {
  const blog = await createBlog(db, tally)
  await using http = await served(own, [])
  await waitFor(async () => (await scrape(http)).value('pgtally_database_up') === 1, { what: 'a scrape in time' })
  const holder = await db.connect()
  await using _ = { [Symbol.asyncDispose]: async () => void (await holder.query('rollback')) }
  await holder.query('begin; lock table pgtally.batch in access exclusive mode')
  // The state of a moment ago would do for the first second.
  await waitFor(async () => (await scrape(http)).value('pgtally_database_up') === 0, { what: 'a scrape that is late' })
  const startedAt = performance.now()
  const scrapes = await Promise.all(Array.from({ length: 20 }, () => scrape(http)))
  expect(scrapes.map(({ value }) => value('pgtally_database_up'))).toEqual(Array.from({ length: 20 }, () => 0))
  expect(scrapes[0]?.value('pgtally_pending_events', { counter: blog.counter })).toBe(0)
  expect(performance.now() - startedAt).toBeLessThan(20_000)
  expect(pool.totalCount).toBe(1)
  await ready(http)
  await holder.query('rollback')
  await waitFor(async () => (await scrape(http)).value('pgtally_database_up') === 1, { what: 'a scrape in time' })
})

test('is asked at most once a second', async () => {
  let asked = 0
  const known = new Known(pool, async (client) => {
    asked++
    return (await client.query<{ timeout: string }>(`select current_setting('statement_timeout') as timeout`)).rows[0]?.timeout
  })
  // Connected, so that the first answer is not late.
  await pool.query('select 1')
  const startedAt = performance.now()
  const answers = await Promise.all(Array.from({ length: 50 }, () => known.get()))
  for (let n = 0; n < 20; n++) answers.push(await known.get())
  expect(answers.every(({ value, error }) => value === '30s' && error === undefined)).toBe(true)
  expect(asked).toBeLessThanOrEqual(1 + Math.floor((performance.now() - startedAt) / 1000))
  await waitFor(async () => (await known.get()) && asked > 1, { what: 'another look' })
})

test('a loop that does not turn is dead, one that turns again is not; nor is one that rests', async () => {
  const blog = await createBlog(db, tally)
  const holder = await db.connect()
  let clock = 0
  await using worker = own.worker({ idlePollIntervalMs: 20 })
  // Also when this fails, before the worker is to stop.
  await using _ = { [Symbol.asyncDispose]: async () => void (await holder.query('rollback')) }
  const health = new Health(pool, own.schema, [worker], () => clock)
  await waitFor(async () => (await health.whyNotReady()).length === 0, { what: 'readiness' })
  clock += 14_000
  expect(await health.whyNotReady()).toEqual([])
  await holder.query('begin; lock table pgtally.consumer in access exclusive mode')
  await like(db.pool, blog, 1)
  await waitFor(async () => (await holder.query(`select from pg_locks where not granted and relation = 'pgtally.consumer'::regclass`)).rows.length > 0, { what: 'the worker to hang' })
  clock += 16_000
  expect(await health.whyNotReady()).toEqual([expect.stringMatching(/^The worker has not reached the database for \d+ s\.$/)])
  expect(health.whyDead()).toEqual([])
  clock += 45_000
  expect(health.whyDead()).toEqual([expect.stringMatching(/^The loop of the worker has not turned for \d+ s\.$/)])
  await holder.query('rollback')
  await waitFor(async () => health.whyDead().length === 0, { what: 'life' })
})

test('a schema that does not fit, a consumer that has ended, a worker that ends', async () => {
  const worker = own.worker()
  const lost = own.consumer({ queue: 'nowhere', name: 'lost', handler: async () => {} })
  await outcome(lost.done)
  await using http = await served(own, [worker])
  await ready(http)
  await db.pool.query('update pgtally.installation set schema_version = schema_version + 98')
  const misfit = await waitFor(async () => (await ask(http, '/readyz')).status === 503 && ask(http, '/readyz'), { what: 'the end of readiness' })
  expect(misfit.body).toMatch(/has version 99.*newer/)
  await db.pool.query('update pgtally.installation set schema_version = schema_version - 98')
  await ready(http)
  {
    await using other = await served(own, [worker, lost])
    const because = /^The consumer "lost" of the queue "nowhere" has ended: There is no queue "nowhere".*\.\n$/
    await waitFor(async () => because.test((await ask(other, '/readyz')).body), { what: 'nothing but the consumer' })
    expect(await ask(other, '/healthz')).toEqual({ status: 503, body: expect.stringMatching(because) })
    expect((await scrape(other)).value('pgtally_worker_consumer_up', { queue: 'nowhere', consumer: 'lost' })).toBe(0)
  }
  await worker.stop()
  expect(await ask(http, '/readyz')).toEqual({ status: 503, body: expect.stringContaining('The worker has ended.\n') })
  expect(await ask(http, '/healthz')).toEqual(ok)
  expect((await scrape(http)).value('pgtally_worker_up')).toBe(0)
})
