import { execFileSync, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

import pg from 'pg'
import { beforeAll, expect, test } from 'vitest'

import { createTally, defineConsumer, type Tally } from '../src/index.ts'
import { prometheusName } from '../src/metrics/metric.ts'
import { processMetrics } from '../src/metrics/process.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like } from './support/fixtures.ts'
import { scrape, served } from './support/scrape.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const docs = (path: string) => readFileSync(new URL(`../docs/${path}`, import.meta.url), 'utf8')

/** Whether promtool is there to check with; Debian has it in the package prometheus. */
const hasPromtool = spawnSync('promtool', ['--version']).status === 0

test('each figure is what is so', async (context) => {
  const [sound, locked, broken] = [await createBlog(db, tally), await createBlog(db, tally), await createBlog(db, tally)]
  await tally.createQueue('mail', { rotationPeriodMs: 2000 })
  const mail = tally.queue('mail')
  for (const consumer of ['paused', 'left']) await mail.register(consumer)
  await mail.pause('paused')
  await db.pool.query(`alter table ${broken.posts} drop like_count`)
  const holder = await db.connect()
  await holder.query(`begin; select from ${locked.posts} where id = 1 for no key update`)

  const quoted = 'say "hi" \\ and\nbye'
  await tally.createCounter(quoted, {})

  const pool = new pg.Pool({ connectionString: db.connectionString, max: 12 })
  const own = createTally({ pool })
  await using running = new AsyncDisposableStack()
  running.defer(() => pool.end())
  const worker = running.use(own.worker({ pollIntervalMs: 5, idlePollIntervalMs: 20 }))
  const picky = running.use(own.consumer(defineConsumer({ queue: 'mail', name: 'picky', pollIntervalMs: 5, each: async (event, batch) => (event.key === '1' ? batch.reject(event, 'no') : undefined) })))
  const failing = running.use(own.consumer(defineConsumer({ queue: 'mail', name: 'failing', pollIntervalMs: 5, handler: async () => Promise.reject(new Error('handler')) })))
  const http = running.use(await served(own, [worker, picky, failing]))

  // Before anything is written to it, the consumers must be there to be given it.
  await waitFor(async () => (await tally.status()).consumers.length === 4, { what: 'the consumers' })
  await mail.insert(db.pool, { key: 1 })
  await mail.insert(db.pool, { key: 2 })
  for (const post of [1, 2, 3]) await like(db.pool, sound, post, post)
  await like(db.pool, locked, 1)
  await like(db.pool, locked, 2)
  await like(db.pool, broken, 1)
  const reached = async (name: string, labels: Record<string, string>, least: number) =>
    waitFor(async () => ((await scrape(http)).value(name, labels) ?? 0) >= least, { what: `${name} ${JSON.stringify(labels)} ${least}` })
  await reached('pgtally_events_total', { counter: sound.counter }, 3)
  // The rows of its likes go with it, and their events find no row.
  await db.pool.query(`delete from ${sound.posts} where id = 3`)
  await reached('pgtally_dropped_events_total', { counter: sound.counter }, 1)
  await reached('pgtally_carried_keys', { counter: locked.counter }, 1)
  await reached('pgtally_failing', { counter: broken.counter }, 1)
  await reached('pgtally_consumer_dead_letters', { queue: 'mail', consumer: 'picky' }, 1)
  await reached('pgtally_consumer_failing', { queue: 'mail', consumer: 'failing' }, 1)
  await reached('pgtally_worker_emptied_slots_total', { queue: 'mail' }, 0)

  const { text, families, value: metric } = await scrape(http)
  const counters = {
    [sound.counter]: { pending_events: 0, lag_seconds: 0, carried_keys: 0, events_total: 4, dropped_events_total: 1, failing: 0, problems: 0 },
    [locked.counter]: { pending_events: 0, carried_keys: 1, events_total: 2, dropped_events_total: 0, failing: 0, problems: 0 },
    [broken.counter]: { pending_events: 1, carried_keys: 0, events_total: 0, batches_total: 0, dropped_events_total: 0, failing: 1, problems: 1 },
  }
  expect(metric('pgtally_pending_events', { counter: quoted })).toBe(0)
  for (const [counter, expected] of Object.entries(counters)) {
    for (const [name, figure] of Object.entries(expected)) expect([counter, name, metric(`pgtally_${name}`, { counter })]).toEqual([counter, name, figure])
  }
  const consumers = {
    paused: { pending_events: 2, open_batches: 0, retrying_events: 0, dead_letters: 0, paused: 1, failing: 0 },
    left: { pending_events: 2, dead_letters: 0, paused: 0, failing: 0 },
    picky: { pending_events: 0, lag_seconds: 0, open_batches: 0, dead_letters: 1, paused: 0, failing: 0 },
    failing: { pending_events: 2, dead_letters: 0, paused: 0, failing: 1 },
  }
  for (const [consumer, expected] of Object.entries(consumers)) {
    for (const [name, figure] of Object.entries(expected)) expect([consumer, name, metric(`pgtally_consumer_${name}`, { queue: 'mail', consumer })]).toEqual([consumer, name, figure])
  }
  // Of times, what is certain: something waits, so it has an age, and no greater one than this test.
  const ages: [name: string, labels: Record<string, string>][] = [
    ['pgtally_lag_seconds', { counter: locked.counter }],
    ['pgtally_lag_seconds', { counter: broken.counter }],
    ['pgtally_queue_oldest_event_age_seconds', { queue: 'mail' }],
    ['pgtally_consumer_lag_seconds', { queue: 'mail', consumer: 'paused' }],
    ['pgtally_oldest_transaction_age_seconds', {}],
  ]
  for (const [name, labels] of ages) expect([name, metric(name, labels)]).toEqual([name, expect.toSatisfy((age: number) => age > 0 && age < 60)])
  expect(metric('pgtally_queue_pending_events', { queue: 'mail' })).toBe(2)
  expect(metric('pgtally_queue_rotation_period_seconds', { queue: 'mail' })).toBe(2)
  const slots = await db.pool.query<{ bytes: number }>(`select unnest(slot_bytes)::float8 as bytes from pgtally.queue_status() where name = $1`, [broken.counter])
  expect(['0', '1', '2'].map((slot) => metric('pgtally_queue_slot_size_bytes', { queue: broken.counter, slot }))).toEqual(slots.rows.map(({ bytes }) => bytes))

  // What this process did is what was done, as nobody else is here.
  for (const { counter } of [sound, locked]) {
    expect(metric('pgtally_worker_applied_events_total', { counter })).toBe(metric('pgtally_events_total', { counter }))
    expect(metric('pgtally_worker_apply_duration_seconds_count', { counter })).toBe(metric('pgtally_batches_total', { counter }))
  }
  expect(metric('pgtally_worker_apply_duration_seconds_bucket', { counter: sound.counter, le: '+Inf' })).toBe(metric('pgtally_worker_apply_duration_seconds_count', { counter: sound.counter }))
  expect(metric('pgtally_worker_apply_duration_seconds_sum', { counter: sound.counter })).toSatisfy((sum: number) => sum > 0 && sum < 60)
  expect(metric('pgtally_worker_apply_errors_total', { counter: broken.counter })).toBeGreaterThan(0)
  expect(metric('pgtally_worker_apply_errors_total', { counter: sound.counter })).toBeUndefined()
  expect(metric('pgtally_worker_handle_duration_seconds_count', { queue: 'mail', consumer: 'picky' })).toBeGreaterThan(0)
  expect(metric('pgtally_worker_handle_errors_total', { queue: 'mail', consumer: 'failing' })).toBeGreaterThan(0)
  expect(metric('pgtally_worker_rounds_total')).toBeGreaterThan(1)
  expect(metric('pgtally_worker_failed_rounds_total')).toBe(0)
  expect(metric('pgtally_worker_up')).toBe(1)
  expect(Math.abs((metric('pgtally_worker_last_round_timestamp_seconds') ?? 0) - Date.now() / 1000)).toBeLessThan(10)
  for (const consumer of ['picky', 'failing']) expect(metric('pgtally_worker_consumer_up', { queue: 'mail', consumer })).toBe(1)
  expect(metric('pgtally_worker_consumer_up', { queue: 'mail', consumer: 'left' })).toBeUndefined()
  expect(metric('pgtally_database_up')).toBe(1)
  expect(metric('pgtally_pool_max_connections')).toBe(12)
  expect(metric('pgtally_pool_waiting')).toBe(0)
  expect((metric('pgtally_pool_connections', { state: 'used' }) ?? 0) + (metric('pgtally_pool_connections', { state: 'idle' }) ?? 0)).toBe(pool.totalCount)

  // By convention.
  for (const { name, type, help } of families) {
    expect(name).toMatch(/^pgtally_[a-z_]+$/)
    expect([name, name.endsWith('_total')]).toEqual([name, type === 'counter'])
    expect(help).toMatch(/\.$/)
  }

  // Dropped is gone; and what is mended says so.
  await holder.query('commit')
  await db.pool.query(`alter table ${broken.posts} add like_count bigint not null default 0`)
  await reached('pgtally_events_total', { counter: broken.counter }, 1)
  await waitFor(async () => (await scrape(http)).value('pgtally_carried_keys', { counter: locked.counter }) === 0, { what: 'nothing carried' })
  await tally.dropCounter(locked.counter)
  await waitFor(async () => (await scrape(http)).value('pgtally_events_total', { counter: locked.counter }) === undefined, { what: 'the end of the dropped counter' })
  const later = await scrape(http)
  expect(later.value('pgtally_failing', { counter: broken.counter })).toBe(0)

  // Drift, as an audit finds it; reconciled, there is none.
  expect(later.value('pgtally_drifting_keys', { counter: sound.counter })).toBeUndefined()
  await db.pool.query(`update ${sound.posts} set like_count = like_count + 1 where id in (1, 2)`)
  const drifting = (keys: number) => waitFor(async () => (await scrape(http)).value('pgtally_drifting_keys', { counter: sound.counter }) === keys, { what: `${keys} drifting keys` })
  await tally.counter(sound.counter).audit()
  await drifting(2)
  await tally.counter(sound.counter).reconcile()
  await drifting(0)
  await db.pool.query(`update ${sound.posts} set like_count = like_count + 1 where id = 1`)
  await tally.counter(sound.counter).audit({ sample: 1000 })
  await drifting(1)
  const audited = (await scrape(http)).value('pgtally_last_audit_timestamp_seconds', { counter: sound.counter }) ?? 0
  expect(Math.abs(audited - Date.now() / 1000)).toBeLessThan(60)

  if (!hasPromtool) context.skip('the rest needs promtool: apt-get install prometheus')
  execFileSync('promtool', ['check', 'metrics'], { input: text })
})

test('the documents name what there is, and nothing else', async () => {
  await tally.counter((await createBlog(db, tally, { rest: { buckets: [{ width: '1 hour', retain: 'forever' }] } })).counter).audit()
  await tally.createQueue('letters')
  await using running = new AsyncDisposableStack()
  const worker = running.use(tally.worker())
  const consumer = running.use(tally.consumer({ queue: 'letters', name: 'reader', handler: async () => {} }))
  const http = running.use(await served(tally, [worker, consumer]))
  await waitFor(async () => (await scrape(http)).value('pgtally_consumer_lag_seconds', { queue: 'letters', consumer: 'reader' }) !== undefined, { what: 'the consumer' })
  const { families } = await scrape(http)
  // Nothing may have happened of which there is a sample.
  const labelsOf = new Map(processMetrics.map((metric) => [prometheusName(metric), metric.labels]))
  const rows = families.map(({ name, type, labels, help }) => `| \`${name}\` | ${type} | ${(labelsOf.get(name) ?? labels).join(', ')} | ${help} |`)
  expect(docs('monitoring.md').split('\n').filter((line) => line.startsWith('| `pgtally_'))).toEqual(rows)

  const names = new Set(families.flatMap(({ name, type }) => (type === 'histogram' ? ['_bucket', '_sum', '_count'].map((suffix) => name + suffix) : [name])))
  const dashboard = JSON.parse(docs('grafana/pgtally.json')) as { panels: { targets?: { expr: string }[] }[] }
  const expressions = dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr))
  const used = [...expressions, docs('prometheus/alerts.yml'), JSON.stringify(dashboard)].flatMap((text) => text.match(/\bpgtally_\w+/g) ?? [])
  expect([...new Set(used)].filter((name) => !names.has(name))).toEqual([])
})
