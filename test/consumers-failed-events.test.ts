import { afterAll, describe, expect, test } from 'vitest'
import { z } from 'zod'

import type { Batch, QueueEvent } from '../src/index.ts'
import { waitFor } from './support/database.ts'
import { value } from './support/fixtures.ts'
import { createLedger, fast, range } from './support/ledger-database.ts'

const { db, tally, createQueue, insert, consumerOf, finished, keys, writeDown } = await createLedger()
afterAll(db.drop)

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
      { key: '2', delta: '1', attempts: 1, reason: 'not this one' },
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
      { key: '4', delta: '9007199254740993', data: null, reason: expect.stringContaining('9007199254740993') },
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
