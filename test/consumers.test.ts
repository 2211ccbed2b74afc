import { setTimeout as sleep } from 'node:timers/promises'

import { beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'

import type { Batch, ConsumerDefinition, QueueEvent, Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { column, installed, value } from './support/fixtures.ts'
import { dedicatedServer } from './support/server.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  await db.pool.query('create table effects (consumer text, id text, key text, delta bigint, data jsonb, attempt integer)')
  return db.drop
})

let queues = 0

/** A queue with a registered consumer `c`. */
async function createQueue(): Promise<string> {
  const queue = `queue_${++queues}`
  await tally.createQueue(queue)
  await tally.queue(queue).register('c')
  return queue
}

const insert = (queue: string, from: number, to = from, data?: unknown) =>
  db.pool.query('select pgtally.insert_event($1::text, k::text, 1, $4::jsonb) from generate_series($2::int, $3::int) k', [queue, from, to, data === undefined ? null : JSON.stringify(data)])

const consumerOf = async (queue: string, name = 'c') => (await tally.status()).consumers.find((consumer) => consumer.queue === queue && consumer.name === name)
const finished = (queue: string) => waitFor(async () => ((await consumerOf(queue))?.pendingEvents === 0 && (await consumerOf(queue))?.retryingEvents === 0), { what: 'a consumer that has finished everything' })
const keys = (queue: string) => column<string>(db.pool, 'select key from effects where consumer = $1 order by key::int', [queue])
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => String(from + index))
const fast = { pollIntervalMs: 5, name: 'c' } as const

/** The pool, with another `query()`. */
const poolWith = (query: (text: string, values: unknown[]) => Promise<unknown>) =>
  new Proxy(db.pool, {
    get(target, property) {
      if (property === 'query') return query
      const member: unknown = Reflect.get(target, property, target)
      return typeof member === 'function' ? member.bind(target) : member
    },
  })

/** Writes each event down, in the batch's transaction. */
const writeDown = (queue: string) => async (batch: { client: { query(text: string, values: unknown[]): Promise<unknown> } } & Batch) => {
  for await (const { id, key, delta, data, attempt } of batch) {
    await batch.client.query('insert into effects values ($1, $2, $3, $4, $5, $6)', [queue, id, key, delta, JSON.stringify(data), attempt])
  }
}

describe('a transactional consumer', () => {
  test('is given what commits, with what it brings along', async () => {
    const queue = await createQueue()
    const before = new Date(Date.now() - 60_000)
    const seen: QueueEvent<{ user: number }>[] = []
    await using consumer = tally.consumer({
      ...fast,
      queue,
      schema: z.object({ user: z.number() }),
      handler: async (batch) => {
        for await (const event of batch) seen.push(event)
      },
    })
    void consumer
    await tally.queue(queue).insert(db.pool, { key: 7, delta: -2, data: { user: 1 } })
    const client = await db.connect()
    await client.query('begin')
    await tally.queue(queue).insert(client, { key: 8, data: { user: 2 } })
    await client.query('rollback')
    await client.query('begin')
    await tally.queue(queue).insert(client, { key: 9, data: { user: 3 } })
    await client.query('commit')
    await waitFor(async () => seen.length === 2, { what: 'two events' })
    expect(seen).toMatchObject([{ key: '7', delta: -2, data: { user: 1 }, attempt: 1 }, { key: '9', delta: 1, data: { user: 3 }, attempt: 1 }])
    expect(seen[0]?.time.getTime()).toBeGreaterThan(before.getTime())
    expect(seen[0]?.id).toMatch(/^\d+\.[012]\.\d+\.\d+$/)
    expect(new Set(seen.map(({ id }) => id)).size).toBe(2)
  })

  test('whose handler throws has done nothing, says why, and goes on when it can; others are not held up', async () => {
    const queue = await createQueue()
    await tally.queue(queue).register('other')
    let broken = true
    const attempts: number[] = []
    await using consumer = tally.consumer({
      ...fast,
      queue,
      handler: async (batch) => {
        attempts.push(batch.attempt)
        await writeDown(queue)(batch)
        if (broken) throw new Error('no mail today')
      },
    })
    void consumer
    const others: string[] = []
    await using other = tally.consumer({ ...fast, name: 'other', queue, handler: async (batch) => { for await (const { key } of batch) others.push(key) } })
    void other
    await insert(queue, 1, 3)
    await waitFor(async () => (await consumerOf(queue))?.lastError === 'no mail today', { what: 'the error' })
    await waitFor(async () => attempts.length > 1, { what: 'another attempt' })
    expect(attempts.slice(0, 2)).toEqual([1, 2])
    expect(await keys(queue)).toEqual([])
    await waitFor(async () => others.length === 3, { what: 'the other consumer' })
    broken = false
    await finished(queue)
    expect(await keys(queue)).toEqual(['1', '2', '3'])
    await waitFor(async () => (await consumerOf(queue))?.lastError === null, { what: 'no error' })
  })

  test('may read a batch of any size in pages, twice, or not at all', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 12_000)
    const pages: number[][] = []
    const sums: { key: string; delta: number; events: number }[] = []
    await using consumer = tally.consumer({
      ...fast,
      queue,
      handler: async (batch) => {
        for (let time = 0; time < 2; time++) {
          const sizes: number[] = []
          for await (const page of batch.pages()) sizes.push(page.length)
          pages.push(sizes)
        }
        sums.push(...(await batch.deltas()))
      },
    })
    void consumer
    await finished(queue)
    expect(pages).toEqual([[5000, 5000, 2000], [5000, 5000, 2000]])
    expect(sums).toHaveLength(12_000)
    expect(sums).toContainEqual({ key: '77', delta: 1, events: 1 })
  })

  test('that hangs is given up after its time, and its connection can do no more', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    const hung: Promise<unknown>[] = []
    const reasons: unknown[] = []
    await using consumer = tally.consumer({
      ...fast,
      queue,
      timeoutMs: 200,
      handler: async (batch) => {
        if (batch.attempt > 1) return writeDown(queue)(batch)
        await new Promise((resolve) => batch.signal.addEventListener('abort', resolve))
        reasons.push(batch.signal.reason)
        await sleep(0)
        hung.push(batch.client.query('insert into effects (consumer) values ($1)', [queue]).catch((error: unknown) => error))
      },
    })
    void consumer
    await finished(queue)
    await waitFor(async () => hung.length === 1, { what: 'the handler that was left behind' })
    expect(await hung[0]).toBeInstanceOf(Error)
    expect(reasons).toMatchObject([{ code: 'TIMEOUT', message: expect.stringContaining('200 ms') }])
    expect(await keys(queue)).toEqual(['1'])
  })

  test('that hangs in a statement is given up, too', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    await using consumer = tally.consumer({ ...fast, queue, timeoutMs: 200, leaseMs: 300, handler: async (batch) => void (batch.attempt > 1 ? await writeDown(queue)(batch) : await batch.client.query('select pg_sleep(600)')) })
    void consumer
    await finished(queue)
    expect(await keys(queue)).toEqual(['1'])
  })

  test('keeps its batch beyond the lease, as long as its transaction lasts', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    const attempts: number[] = []
    let claims = 0
    const watched = poolWith((text, values) => {
      if (text.includes('due_batch')) claims++
      return db.pool.query(text, values)
    })
    const definition: ConsumerDefinition<z.ZodUnknown, 'transactional'> = {
      ...fast,
      queue,
      leaseMs: 1,
      handler: async (batch) => {
        attempts.push(batch.attempt)
        await waitFor(async () => value<boolean>(db.pool, `select pgtally.due_batch($1, 'c')`, [queue]), { what: 'the end of the lease' })
        const before = claims
        await waitFor(async () => claims > before + 3, { what: 'others that try' })
        await writeDown(queue)(batch)
      },
    }
    await using one = tally.consumer(definition)
    await waitFor(async () => attempts.length === 1, { what: 'the batch' })
    await using other = createTally({ pool: watched }).consumer(definition)
    void [one, other]
    await finished(queue)
    expect(attempts).toEqual([1])
  })

  test('that finishes its batch itself is told so, and nothing has happened', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    await using consumer = tally.consumer({
      ...fast,
      queue,
      handler: async (batch) => {
        await writeDown(queue)(batch)
        if (batch.attempt === 1) await batch.client.query('select pgtally.finish_batch($1, $2)', [batch.id, batch.attempt])
      },
    })
    void consumer
    await waitFor(async () => /no open batch/.test((await consumerOf(queue))?.lastError ?? ''), { what: 'the error' })
    await finished(queue)
    expect(await keys(queue)).toEqual(['1'])
  })

  test('takes batches one after the other, whichever process has them', async () => {
    const queue = await createQueue()
    let atWork = 0
    let most = 0
    const order: string[] = []
    const definition: ConsumerDefinition = {
      ...fast,
      queue,
      maxEvents: 3,
      handler: async (batch) => {
        most = Math.max(most, ++atWork)
        for await (const { key } of batch) order.push(key)
        await sleep(2)
        atWork--
      },
    }
    for (let key = 1; key <= 60; key++) await insert(queue, key)
    await using one = tally.consumer(definition)
    await using two = createTally({ pool: db.pool }).consumer(definition)
    void [one, two]
    await finished(queue)
    expect(order).toEqual(range(1, 60))
    expect(most).toBe(1)
  })

  test('need not be in order, and then several batches are at work at once', async () => {
    const queue = await createQueue()
    let atWork = 0
    const { promise: four, resolve } = Promise.withResolvers<void>()
    const definition: ConsumerDefinition = {
      ...fast,
      queue,
      ordered: false,
      concurrency: 2,
      maxEvents: 3,
      handler: async (batch) => {
        if (++atWork === 4) resolve()
        await four
        await writeDown(queue)(batch as never)
      },
    }
    for (let key = 1; key <= 60; key++) await insert(queue, key)
    await using one = tally.consumer(definition)
    await using two = tally.consumer(definition)
    void [one, two]
    await finished(queue)
    expect(await keys(queue)).toEqual(range(1, 60))
  })

  test('waits for enough events, but no longer than it is told', async () => {
    const queue = await createQueue()
    const sizes: number[] = []
    const consume = (maxWaitMs: number) =>
      tally.consumer({ ...fast, queue, minEvents: 5, maxWaitMs, handler: async (batch) => { for await (const page of batch.pages()) sizes.push(page.length) } })
    const patient = consume(3_600_000)
    await insert(queue, 1, 4)
    await insert(queue, 5)
    await waitFor(async () => sizes.length > 0, { what: 'a batch' })
    await patient.stop()
    await insert(queue, 6)
    await using impatient = consume(50)
    void impatient
    await finished(queue)
    expect(sizes).toEqual([5, 1])
  })
})

describe('a failed event', () => {
  test('is given again by itself, with the same identity, and holds up nothing', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 5)
    const given: { id: string; key: string; attempt: number; batch: string }[] = []
    await using consumer = tally.consumer({
      ...fast,
      queue,
      handler: async (batch) => {
        for await (const event of batch) {
          given.push({ id: event.id, key: event.key, attempt: event.attempt, batch: batch.id })
          if (event.key === '3' && event.attempt < 3) batch.retry(event, { delayMs: 0, reason: 'not yet' })
          else await batch.client.query('insert into effects values ($1, $2, $3)', [queue, event.id, event.key])
        }
      },
    })
    void consumer
    await finished(queue)
    expect(await keys(queue)).toEqual(range(1, 5))
    const third = given.filter(({ key }) => key === '3')
    expect(third.map(({ attempt }) => attempt)).toEqual([1, 2, 3])
    expect(new Set(third.map(({ id }) => id)).size).toBe(1)
    expect(new Set(third.map(({ batch }) => batch)).size).toBe(3)
    expect(given).toHaveLength(7)
  })

  test('of `each` leaves no effects, and the others have theirs', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 5)
    await using consumer = tally.consumer({
      ...fast,
      queue,
      maxAttempts: 1,
      each: async ({ id, key }, { client }) => {
        await client.query('insert into effects values ($1, $2, $3)', [queue, id, key])
        if (key === '2') throw new Error('not this one')
        if (key === '4') await client.query('select 1 / 0')
      },
    })
    void consumer
    await finished(queue)
    expect(await keys(queue)).toEqual(['1', '3', '5'])
    expect(await tally.queue(queue).deadLetters('c')).toMatchObject([
      { key: '2', delta: 1, attempts: 1, reason: 'not this one' },
      { key: '4', attempts: 1, reason: 'division by zero' },
    ])
  })

  test('that throws together with others is found out, and they are handled', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 30)
    await using consumer = tally.consumer({
      ...fast,
      queue,
      maxAttempts: 3,
      handler: async (batch) => {
        for await (const event of batch) {
          if (event.attempt === 1) batch.retry(event, { delayMs: 0 })
          else if (event.key === '13') throw new Error('unlucky')
          else await batch.client.query('insert into effects values ($1, $2, $3, 1, null, $4)', [queue, event.id, event.key, event.attempt])
        }
      },
    })
    void consumer
    await finished(queue)
    expect(await keys(queue)).toEqual(range(1, 30).filter((key) => key !== '13'))
    expect(await tally.queue(queue).deadLetters('c')).toMatchObject([{ key: '13', attempts: 3, reason: 'unlucky' }])
  })

  test('is a dead letter at once where its data will not do; replayed, listed and purged', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 1, { user: 1 })
    await insert(queue, 2, 2, { user: 'one' })
    await db.pool.query(`select pgtally.insert_event('${queue}', '3', 1, '{"user": 12345678901234567890}'), pgtally.insert_event('${queue}', '4', 9007199254740993)`)
    const start = (schema: z.ZodType) => tally.consumer({ ...fast, queue, schema, handler: writeDown(queue) as never })
    const strict = start(z.object({ user: z.int() }))
    await finished(queue)
    await strict.stop()
    expect(await keys(queue)).toEqual(['1'])
    const letters = await tally.queue(queue).deadLetters('c')
    expect(letters).toMatchObject([
      { key: '2', data: { user: 'one' }, reason: expect.stringMatching(/^data: user: .*number/) },
      { key: '3', reason: expect.stringMatching(/^data: user: /) },
      { key: '4', data: null, reason: expect.stringContaining('9007199254740993') },
    ])
    // To the last digit.
    expect(await value(db.pool, `select ev_data::text from pgtally.dead_letters($1, 'c') where ev_key = '3'`, [queue])).toBe('{"user": 12345678901234567890}')
    expect(await tally.queue(queue).purge('c', [letters[2]?.number ?? ''])).toBe(1)
    expect(await tally.queue(queue).replay('c', [letters[0]?.number ?? ''])).toBe(1)
    expect(await consumerOf(queue)).toMatchObject({ deadLetters: 1, retryingEvents: 1 })
    await using lenient = start(z.unknown())
    void lenient
    await finished(queue)
    expect(await keys(queue)).toEqual(['1', '2'])
    expect(await tally.queue(queue).purge('c')).toBe(1)
    expect(await tally.queue(queue).deadLetters('c')).toEqual([])
  })

  test('must be one that the batch has given, before it is over', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    const errors: unknown[] = []
    const batches: Batch[] = []
    const events: QueueEvent[] = []
    await using consumer = tally.consumer({
      ...fast,
      queue,
      handler: async (batch) => {
        for await (const event of batch) events.push(event)
        batches.push(batch)
        try {
          batch.retry({ ...(events[0] as QueueEvent) })
        } catch (error) {
          errors.push(error)
        }
        batch.retry(events[0] as QueueEvent, { delayMs: -1 })
      },
    })
    void consumer
    await waitFor(async () => /delayMs is -1/.test((await consumerOf(queue))?.lastError ?? ''), { what: 'the error' })
    expect(errors[0]).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('not one that batch') })
  })
})

describe('an at-least-once consumer', () => {
  test('finishes its batch after the handler, keeps it as long as that takes, and holds no transaction open', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 3)
    const given: string[] = []
    let renewed: string | null = null
    const until = () => value<string>(db.pool, 'select claimed_until::text from pgtally.batch join pgtally.consumer using (consumer_id) join pgtally.queue using (queue_id) where queue.name = $1 and finished_at is null', [queue])
    await using consumer = tally.consumer({
      ...fast,
      queue,
      mode: 'at-least-once',
      leaseMs: 200,
      handler: async (batch) => {
        for await (const { key } of batch) {
          given.push(key)
          expect(await value(db.pool, `select count(*)::int from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'`)).toBe(0)
        }
        const first = await until()
        renewed = await waitFor(async () => ((await until()) === first ? undefined : ((await until()) ?? undefined)), { what: 'a renewed claim' })
      },
    })
    void consumer
    await finished(queue)
    expect(renewed).not.toBeNull()
    expect(given).toEqual(['1', '2', '3'])
    expect(await consumerOf(queue)).toMatchObject({ lastError: null })
  })

  test('is given the same events by that number again, also after a crash of the server', async (context) => {
    // What is not flushed by a commit is lost then.
    await using server = await dedicatedServer(context, { wal_writer_delay: '10s' })
    await using own = await createTestDatabase(server.connectionString)
    const ownTally = await installed(own)
    await ownTally.createQueue('q')
    await ownTally.queue('q').register('c')
    const given: string[] = []
    await ownTally.queue('q').insert(own.pool, { key: 1 })
    await using consumer = ownTally.consumer({
      ...fast,
      queue: 'q',
      mode: 'at-least-once',
      handler: async (batch) => {
        for await (const { key } of batch) given.push(`${batch.id}: ${key}`)
        if (given.length > 1) return
        await server.crash()
        await server.restart()
        await ownTally.queue('q').insert(own.pool, { key: 2 })
        throw new Error('the server crashed')
      },
    })
    void consumer
    await waitFor(async () => given.length === 3, { what: 'both events' })
    expect(given[1]).toBe(given[0])
    expect(given[2]).toMatch(/: 2$/)
  })

  test('that is silent for too long loses its batch to another, and cannot finish it', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 3)
    const handled: string[] = []
    const reasons: unknown[] = []
    // Its claim cannot be renewed: as if the process were stopped.
    const silent = { renew: true }
    const pool = poolWith((text, values) => (silent.renew && text.includes('renew_claim') ? Promise.resolve({ rows: [] }) : db.pool.query(text, values)))
    const { promise: tookOver, resolve } = Promise.withResolvers<void>()
    await using late = createTally({ pool }).consumer({
      ...fast,
      queue,
      mode: 'at-least-once',
      leaseMs: 100,
      handler: async (batch) => {
        handled.push(`late ${batch.attempt}`)
        await tookOver
        silent.renew = false
        await new Promise((after) => batch.signal.addEventListener('abort', after))
        reasons.push(batch.signal.reason)
      },
    })
    await waitFor(async () => handled.length === 1, { what: 'the first to begin' })
    await using other = tally.consumer({ ...fast, queue, mode: 'at-least-once', handler: async (batch) => { handled.push(`other ${batch.attempt}`); resolve(); await waitFor(async () => reasons.length > 0, { what: 'the first to notice' }) } })
    void other
    await finished(queue)
    expect(handled).toEqual(['late 1', 'other 2'])
    expect(reasons).toMatchObject([{ code: 'BATCH_LOST' }])
    await late.stop()
    expect(await value(db.pool, `select count(*)::int from pgtally.batch where claim > 0 and consumer_id = (select consumer_id from pgtally.consumer join pgtally.queue using (queue_id) where queue.name = $1)`, [queue])).toBe(1)
  })
})

describe('the position of a consumer', () => {
  test('stays while it is paused, and is moved by seek and skip', async () => {
    const queue = `queue_${++queues}`
    await tally.createQueue(queue, { retainMs: 3_600_000 })
    const handle = tally.queue(queue)
    await handle.register('c')
    expect(await handle.pause('c')).toBe(true)
    expect(await handle.pause('c')).toBe(false)
    await insert(queue, 1, 3)
    expect(await value(db.pool, `select pgtally.next_batch($1, 'c')`, [queue])).toBeNull()
    expect(await value(db.pool, `select pgtally.due_batch($1, 'c')`, [queue])).toBe(false)
    expect(await value(db.pool, `select batch_id from pgtally.claim_batch($1, 'c', '1 minute')`, [queue])).toBeNull()
    expect(await consumerOf(queue)).toMatchObject({ pendingEvents: 3, pausedAt: expect.any(String) })
    expect(await handle.resume('c')).toBe(true)
    expect(await handle.resume('c')).toBe(false)
    expect(await handle.skip('c')).toBe(3)
    await using consumer = tally.consumer({ ...fast, queue, handler: writeDown(queue) })
    void consumer
    await insert(queue, 4)
    await finished(queue)
    expect(await keys(queue)).toEqual(['4'])
    expect(await handle.seek('c', new Date(Date.now() - 3_600_000))).toBe(4)
    await finished(queue)
    expect(await keys(queue)).toEqual(['1', '2', '3', '4', '4'])
  })
})

describe('what will not do', () => {
  const handler = async () => {}

  test.each<[string, object, RegExp]>([
    ['neither handler nor each', {}, /needs either `handler` or `each`/],
    ['both', { handler, each: handler }, /needs either/],
    ['a long name', { handler, name: 'x'.repeat(201) }, /200 bytes/],
    ['concurrency in order', { handler, concurrency: 2 }, /ordered: false/],
    ['more events than fit', { handler, minEvents: 20_000 }, /minEvents/],
    ['a schema of another kind', { handler, schema: {} }, /zod schema/],
    ['a misspelled option', { handler, maxWait: 3 }, /maxWait/],
  ])('%s is refused', (_, options, message) => {
    expect(() => tally.consumer({ queue: 'q', name: 'c', ...options } as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }))
  })

  test('a queue that is not there, a counter, or a schema that is not installed, ends it', async () => {
    await expect(tally.consumer({ queue: 'nowhere', name: 'c', handler }).done).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await tally.createCounter('counted', {})
    await expect(tally.consumer({ queue: 'counted', name: 'counted', handler }).done).rejects.toMatchObject({ code: 'IN_USE' })
    await expect(createTally({ pool: db.pool, schema: 'nothing' }).consumer({ queue: 'counted', name: 'c', handler }).done).rejects.toMatchObject({ code: 'NOT_INSTALLED' })
  })

  test('a queue that is dropped ends its consumer', async () => {
    const queue = await createQueue()
    const consumer = tally.consumer({ ...fast, queue, handler })
    await insert(queue, 1)
    await finished(queue)
    await tally.queue(queue).unregister('c')
    await expect(consumer.done).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await tally.dropQueue(queue)
    await expect(tally.dropQueue(queue)).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('there is no transaction outside of mode transactional', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    await using consumer = tally.consumer({ ...fast, queue, mode: 'at-least-once', handler: async (batch) => void (batch as unknown as { client: unknown }).client })
    void consumer
    expect(await waitFor(async () => (await consumerOf(queue))?.lastError ?? undefined, { what: 'the error' })).toContain("mode: 'transactional'")
  })
})
