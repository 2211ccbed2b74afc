import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

import { context, metrics, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { MeterProvider, MetricReader } from '@opentelemetry/sdk-metrics'
import { InMemorySpanExporter, SimpleSpanProcessor, TracerProvider } from '@opentelemetry/sdk-trace'
import pg from 'pg'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'

import { createTally, type Tally } from '../src/index.ts'
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

class Reader extends MetricReader {
  protected override async onShutdown(): Promise<void> {}
  protected override async onForceFlush(): Promise<void> {}
}
const reader = new Reader()
const exporter = new InMemorySpanExporter()

beforeAll(() => {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
  metrics.setGlobalMeterProvider(new MeterProvider({ readers: [reader] }))
  trace.setGlobalTracerProvider(new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter })] }))
})
afterAll(() => {
  for (const api of [context, metrics, trace]) api.disable()
})

const spans = (name: string) => exporter.getFinishedSpans().filter((span) => span.name === name)
const span = (name: string, isIt: (attributes: Record<string, unknown>) => boolean = () => true) =>
  waitFor(async () => spans(name).find(({ attributes }) => isIt(attributes)), { what: `the span "${name}"` })

interface Point {
  attributes: object
  value: unknown
}

async function collected(name: string): Promise<Point[]> {
  const { resourceMetrics, errors } = await reader.collect()
  expect(errors).toEqual([])
  return resourceMetrics.scopeMetrics.flatMap(({ metrics: found }) => found.filter(({ descriptor }) => descriptor.name === name).flatMap(({ dataPoints }) => dataPoints as Point[]))
}

test('spans of batches, of slots, of audits, and of what fails', async () => {
  const [sound, broken] = [await createBlog(db, tally), await createBlog(db, tally)]
  await db.pool.query(`alter table ${broken.posts} drop like_count`)
  await tally.createQueue('mail')
  const within: unknown[] = []
  await using running = new AsyncDisposableStack()
  // What they are started within has ended long ago when they work.
  trace.getTracer('test').startActiveSpan('request', (request) => {
    running.use(tally.worker({ pollIntervalMs: 5 }))
    running.use(
      tally.consumer({
        queue: 'mail',
        name: 'reader',
        pollIntervalMs: 5,
        handler: async (batch) => {
          within.push(trace.getActiveSpan()?.spanContext().spanId)
          if (batch.attempt === 1) throw new Error('not at once')
        },
      }),
    )
    request.end()
  })
  await waitFor(async () => (await tally.status()).consumers.length === 1, { what: 'the consumer' })
  await tally.queue('mail').insert(db.pool, { key: 1 })
  await like(db.pool, sound, 1)
  await like(db.pool, broken, 1)

  const messaging = { 'messaging.system': 'pgtally', 'messaging.operation.type': 'process', 'db.system.name': 'postgresql' }
  const applied = await span(`apply ${sound.counter}`, (attributes) => attributes['messaging.batch.message_count'] === 1)
  expect(applied).toMatchObject({ kind: SpanKind.CONSUMER, parentSpanContext: undefined, status: { code: SpanStatusCode.UNSET } })
  expect(applied.attributes).toMatchObject({ ...messaging, 'messaging.operation.name': 'apply', 'messaging.consumer.group.name': sound.counter, 'pgtally.batch.keys': 1, 'pgtally.batch.carried_keys': 0 })
  expect(applied.instrumentationScope).toMatchObject({ name: 'pgtally', version: expect.stringMatching(/^\d+\.\d+\.\d+/) })
  const failed = await span(`apply ${broken.counter}`)
  expect(failed).toMatchObject({ status: { code: SpanStatusCode.ERROR, message: expect.stringContaining('like_count') }, attributes: { 'error.type': '42703' }, events: [{ name: 'exception' }] })

  const handled = await span('process mail', (attributes) => attributes['pgtally.batch.attempt'] === 2)
  expect(handled).toMatchObject({ kind: SpanKind.CONSUMER, parentSpanContext: undefined, attributes: { ...messaging, 'messaging.destination.name': 'mail', 'messaging.consumer.group.name': 'reader', 'pgtally.batch.id': expect.any(String) } })
  expect(await span('process mail', (attributes) => attributes['pgtally.batch.attempt'] === 1)).toMatchObject({ status: { code: SpanStatusCode.ERROR, message: 'not at once' } })
  expect(within).toContain(handled.spanContext().spanId)
  expect(await span('rotate mail')).toMatchObject({ parentSpanContext: undefined, attributes: { 'messaging.destination.name': 'mail', 'pgtally.count': 0 } })

  // What the application asks for belongs to what the application does.
  const tracer = trace.getTracer('test')
  await tracer.startActiveSpan('request', async (request) => {
    await tally.counter(sound.counter).audit()
    request.end()
    expect(await span(`audit ${sound.counter}`)).toMatchObject({ kind: SpanKind.INTERNAL, parentSpanContext: { spanId: request.spanContext().spanId }, attributes: { 'pgtally.audit.checked_keys': 10, 'pgtally.audit.drifting_keys': 0 } })
  })
})

test('metrics through the global meter, the same as Prometheus is given', async () => {
  const blog = await createBlog(db, tally)
  const pool = new pg.Pool({ connectionString: db.connectionString })
  const own = createTally({ pool })
  {
    await using worker = own.worker({ pollIntervalMs: 5 })
    await using http = await served(own, [worker])
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 2)
    const figure = async (name: string) => (await collected(name)).find(({ attributes }) => 'counter' in attributes && attributes.counter === blog.counter)?.value
    await waitFor(async () => (await figure('pgtally.events')) === 2, { what: 'the events' })
    const { value: metric } = await waitFor(async () => {
      const found = await scrape(http)
      return found.value('pgtally_events_total', { counter: blog.counter }) === 2 && found
    }, { what: 'the events' })
    expect(await figure('pgtally.pending_events')).toBe(0)
    expect(await figure('pgtally.worker.applied_events')).toBe(2)
    expect(await figure('pgtally.worker.apply_duration')).toMatchObject({ count: metric('pgtally_worker_apply_duration_seconds_count', { counter: blog.counter }), buckets: { boundaries: expect.arrayContaining([0.001, 60]) } })
    expect((await collected('pgtally.worker.rounds'))[0]?.value).toBeGreaterThan(0)
    expect(await collected('pgtally.queue.slot_size')).toContainEqual(expect.objectContaining({ attributes: { queue: blog.counter, slot: '0' }, value: expect.any(Number) }))
    expect((await collected('pgtally.lag')).every(({ value: lag }) => typeof lag === 'number')).toBe(true)
  }
  // The figures stay, as the SDK has it, but nothing is asked any more.
  let asked = 0
  pool.on('acquire', () => asked++)
  // What was read in the last second is not read again.
  const clock = vi.spyOn(performance, 'now').mockReturnValue(performance.now() + 5000)
  await collected('pgtally.pending_events')
  clock.mockRestore()
  expect(asked).toBe(0)
  await pool.end()
})

test('without @opentelemetry/api nothing is missed', async () => {
  const blog = await createBlog(db, tally)
  await like(db.pool, blog, 1)
  const hidden = `import Module from 'node:module'
    const resolve = Module._resolveFilename
    Module._resolveFilename = (name, ...rest) => {
      if (!name.startsWith('@opentelemetry/')) return resolve(name, ...rest)
      console.log('asked for ' + name)
      throw Object.assign(new Error('Cannot find module'), { code: 'MODULE_NOT_FOUND' })
    }`
  const script = `import pg from 'pg'
    import { createTally } from '${new URL('../src/index.ts', import.meta.url).href}'
    const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL })
    const tally = createTally({ pool })
    const worker = tally.worker()
    while ((await tally.counter('${blog.counter}').get(1)) !== 1) await new Promise((resolve) => setTimeout(resolve, 20))
    const { driftingKeys } = await tally.counter('${blog.counter}').audit()
    await worker.stop()
    await pool.end()
    console.log('drifting: ' + driftingKeys)`
  const { stdout } = await promisify(execFile)(process.execPath, ['--import', `data:text/javascript,${encodeURIComponent(hidden)}`, '--input-type=module', '--eval', script], {
    env: { ...process.env, DATABASE_URL: db.connectionString },
    timeout: 25_000,
  })
  expect(stdout).toBe('asked for @opentelemetry/api\ndrifting: 0\n')
})
