import { setTimeout as sleep } from 'node:timers/promises'

import { afterAll, describe, expect, test } from 'vitest'
import { z } from 'zod'

import type { ConsumerDefinition, QueueEvent } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { waitFor } from './support/database.ts'
import { value } from './support/fixtures.ts'
import { createLedger, fast, poolWith, range } from './support/ledger-database.ts'

const { db, tally, createQueue, insert, consumerOf, finished, keys, writeDown } = await createLedger()
afterAll(db.drop)

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
    const watched = poolWith(db, (text, values) => {
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

describe('the position of a consumer', () => {
  test('stays while it is paused, and is moved by seek and skip', async () => {
    const queue = await createQueue({ retainMs: 3_600_000 })
    const handle = tally.queue(queue)
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
