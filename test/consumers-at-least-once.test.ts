import pg from 'pg'
import { afterAll, describe, expect, test } from 'vitest'

import type { KeyDelta } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor } from './support/database.ts'
import { installed, value } from './support/fixtures.ts'
import { createLedger, fast, poolWith } from './support/ledger-database.ts'
import { dedicatedServer } from './support/server.ts'

const { db, tally, createQueue, insert, consumerOf, finished } = await createLedger()
afterAll(db.drop)

describe('an at-least-once consumer', () => {
  test('works where the default isolation is another one, and rounds no sum', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 2)
    await insert(queue, 1)
    const pool = new pg.Pool({ connectionString: db.connectionString, options: '-c default_transaction_isolation=serializable' })
    const own = createTally({ pool })
    expect(await own.queue(queue).register('other')).toBe(true)
    expect(await own.queue(queue).skip('other')).toBe(0)
    const sums: KeyDelta[] = []
    const consumer = own.consumer({ ...fast, queue, mode: 'at-least-once', handler: async (batch) => void sums.push(...(await batch.deltas())) })
    await finished(queue)
    expect(sums.toSorted((a, b) => a.key.localeCompare(b.key))).toEqual([{ key: '1', delta: 2, events: 2 }, { key: '2', delta: 1, events: 1 }])
    await db.pool.query('select pgtally.insert_event($1, 3::text, 9007199254740993)', [queue])
    expect(await waitFor(async () => (await consumerOf(queue))?.lastError ?? undefined, { what: 'the error' })).toContain('9007199254740993')
    await consumer.stop()
    await pool.end()
  })

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
      leaseMs: 1000,
      handler: async (batch) => {
        for await (const { key } of batch) {
          given.push(key)
          // Whoever asks for the status has one for a moment.
          await waitFor(async () => value<boolean>(db.pool, `select not exists (select from pg_stat_activity where datname = current_database() and state like 'idle in transaction%')`), { what: 'no open transaction' })
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
    const pool = poolWith(db, (text, values) => (silent.renew && text.includes('renew_claim') ? Promise.resolve({ rows: [] }) : db.pool.query(text, values)))
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
