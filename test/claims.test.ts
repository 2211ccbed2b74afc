import { beforeAll, describe, expect, test } from 'vitest'

import type { QueueOptions, Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { blocked, column, installed, pid, value, type Session } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

let queues = 0

/** A queue with a consumer `c`. */
async function createQueue(options: QueueOptions = {}): Promise<string> {
  const queue = `queue_${++queues}`
  await tally.createQueue(queue, options)
  await tally.queue(queue).register('c')
  return queue
}

interface Claim {
  batch_id: string | null
  claim: number | null
}

async function claim(queue: string, options = '', lease = '1 minute'): Promise<Claim> {
  const { rows } = await db.pool.query<Claim>(`select batch_id::text, claim from pgtally.claim_batch($1, 'c', $2 ${options})`, [queue, lease])
  return rows[0] as Claim
}

const none: Claim = { batch_id: null, claim: null }
const apart = ', in_order => false'
const insert = async (queue: string, ...keys: number[]) => {
  for (const key of keys) await tally.queue(queue).insert(db.pool, { key })
}
const events = ({ batch_id: id }: Claim) => column<string>(db.pool, 'select ev_key from pgtally.get_batch_events($1)', [id])
const finish = ({ batch_id: id, claim: number }: Claim) => db.pool.query('select pgtally.finish_batch($1, $2)', [id, number])
const lock = ({ batch_id: id, claim: number }: Claim, session: Session = db.pool) => session.query('select pgtally.lock_batch($1, $2)', [id, number])
const due = (queue: string, options = '') => value<boolean>(db.pool, `select pgtally.due_batch($1, 'c' ${options})`, [queue])
const rotate = (queue: string) => value<number>(db.pool, 'select pgtally.rotate($1)', [queue])

describe('a claimed batch', () => {
  test('is given to nobody else until the claim ends; after that the first can do nothing with it', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    const first = await claim(queue)
    expect(first).toMatchObject({ claim: 1 })
    await insert(queue, 2)
    expect([await due(queue), await claim(queue)]).toEqual([false, none])
    await db.pool.query(`select pgtally.renew_claim($1, $2, '0')`, [first.batch_id, first.claim])
    expect(await due(queue)).toBe(true)
    const second = await claim(queue)
    expect(second).toEqual({ batch_id: first.batch_id, claim: 2 })
    expect(await events(second)).toEqual(['1'])
    for (const call of ['finish_batch($1, $2)', 'lock_batch($1, $2)', `renew_claim($1, $2, '1 minute')`, `release_batch($1, $2, '0', 'x', 3)`]) {
      await expect(db.pool.query(`select pgtally.${call}`, [first.batch_id, first.claim])).rejects.toMatchObject({ code: 'TL011' })
    }
    await expect(db.pool.query('select pgtally.finish_batch($1)', [first.batch_id])).rejects.toMatchObject({ code: 'TL011' })
    await finish(second)
    await expect(finish(second)).rejects.toMatchObject({ code: 'TL001' })
    expect(await events(await claim(queue))).toEqual(['2'])
  })

  test('at which a transaction is at work is not taken over, however long that takes', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    const first = await claim(queue, '', '0')
    const worker = await db.connect()
    await worker.query('begin')
    await lock(first, worker)
    expect(await claim(queue)).toEqual(none)
    await worker.query('rollback')
    expect(await claim(queue)).toEqual({ ...first, claim: 2 })
  })

  test('is claimed by one of many that try at once', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    const claims = await Promise.all(Array.from({ length: 20 }, () => claim(queue)))
    expect(claims.filter(({ batch_id: id }) => id !== null)).toHaveLength(1)
    const batches = await Promise.all(Array.from({ length: 20 }, () => claim(queue, apart)))
    expect(batches.filter(({ batch_id: id }) => id !== null)).toEqual([])
  })

  test('beside others is finished in any order, and keeps its events until then', async () => {
    const queue = await createQueue({ rotationPeriodMs: 1000 })
    const slotOf = (key: number) => value<number>(db.pool, `select ev_slot from ${'event_of_' + queue} where ev_key = $1`, [key])
    await db.pool.query(`create view event_of_${queue} as select * from ${await value<string>(db.pool, 'select pgtally.event_table($1)', [queue])}`)
    await insert(queue, 1)
    const first = await claim(queue, apart)
    await insert(queue, 2)
    const second = await claim(queue, apart)
    expect([await events(first), await events(second)]).toEqual([['1'], ['2']])
    await finish(second)
    // Long enough ago for readers with older snapshots.
    await db.pool.query(`update pgtally.batch set finished_at = finished_at - interval '1 hour' where finished_at is not null`)
    const slot = await slotOf(1)
    await waitFor(async () => (await value<number>(db.pool, 'select current_slot from pgtally.queue_status() where name = $1', [queue])) !== slot, { what: 'the next slot' })
    expect(await rotate(queue)).toBe(0)
    expect(await events(first)).toEqual(['1'])
    expect(await value(db.pool, `select pending_events::int from pgtally.consumer_status() where queue = $1`, [queue])).toBe(2)
    await finish(first)
    await db.pool.query(`update pgtally.batch set finished_at = finished_at - interval '1 hour' where finished_at is not null`)
    await waitFor(async () => (await value<number>(db.pool, 'select pgtally.rotate($1)', [queue])) === 1 || (await value<number>(db.pool, `select count(*)::int from event_of_${queue}`)) === 0, { what: 'an empty slot' })
  })

  test('is not mixed up with one of next_batch()', async () => {
    const queue = await createQueue()
    await insert(queue, 1)
    const next = (session: Session = db.pool) => value<string | null>(session, `select pgtally.next_batch($1, 'c')`, [queue])
    const opened = await next()
    expect(await next()).toBe(opened)
    expect([await due(queue), await claim(queue)]).toEqual([false, none])
    await expect(db.pool.query('select pgtally.finish_batch($1, 1)', [opened])).rejects.toMatchObject({ code: 'TL011' })
    await db.pool.query('select pgtally.finish_batch($1)', [opened])
    await insert(queue, 2)
    const claimed = await claim(queue)
    await expect(next()).rejects.toMatchObject({ code: 'TL010', message: expect.stringContaining('claimed batch') })
    await finish(claimed)
    expect(await next()).toBeNull()
  })

  test('is forgotten by seek and skip, and whoever had it cannot finish it', async () => {
    const queue = await createQueue({ retainMs: 60_000 })
    await insert(queue, 1)
    const first = await claim(queue)
    expect(await tally.queue(queue).skip('c')).toBe(1)
    await expect(lock(first)).rejects.toMatchObject({ code: 'TL011' })
    expect(await tally.queue(queue).seek('c', new Date(0))).toBe(1)
    const second = await claim(queue)
    expect(await events(second)).toEqual(['1'])
    expect(await tally.queue(queue).seek('c', new Date(0))).toBe(1)
    await expect(finish(second)).rejects.toMatchObject({ code: 'TL001' })
  })

  test('is looked for without a transaction id', async () => {
    const queue = await createQueue()
    const session = await db.connect()
    await session.query('begin')
    for (const isDue of [false, true]) {
      expect(await value(session, `select pgtally.due_batch($1, 'c')`, [queue])).toBe(isDue)
      await insert(queue, 1)
    }
    expect(await value(session, 'select pg_current_xact_id_if_assigned()')).toBeNull()
    await session.query('rollback')
  })

  test('is due for enough events, or for one that has waited', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 2)
    const patient = `, min_events => 3, max_wait => '1 hour'`
    expect([await due(queue, patient), await claim(queue, patient)]).toEqual([false, none])
    expect(await due(queue, `, min_events => 3, max_wait => '0'`)).toBe(true)
    await insert(queue, 3)
    expect(await due(queue, patient)).toBe(true)
    expect(await events(await claim(queue, patient))).toEqual(['1', '2', '3'])
  })
})

describe('failed events', () => {
  test.each(['skip($1, $2)', 'seek($1, $2, now())', 'unregister_consumer($1, $2)'])('can be left by a batch that %s waits for', async (call) => {
    const queue = await createQueue()
    await insert(queue, 1)
    const batch = await claim(queue)
    const worker = await db.connect()
    await worker.query('begin')
    await lock(batch, worker)
    const moving = await db.connect()
    const backend = await pid(moving)
    const moved = moving.query(`select pgtally.${call}`, [queue, 'c'])
    await blocked(db, backend)
    await worker.query(`select pgtally.fail_event($1, 'c', ev_id, ev_time, ev_key, ev_delta, ev_data, 1, 'why', '0') from pgtally.get_batch_events($2)`, [queue, batch.batch_id])
    await worker.query('select pgtally.finish_batch($1, $2)', [batch.batch_id, batch.claim])
    await worker.query('commit')
    await moved
    expect(await value(db.pool, 'select count(*)::int from pgtally.failed_event')).toBe(call.startsWith('unregister') ? 0 : 1)
    await db.pool.query('delete from pgtally.failed_event')
  })

  const fail = (queue: string, batch: Claim, key: number, retryIn: string | null) =>
    db.pool.query(`select pgtally.fail_event($1, 'c', ev_id, ev_time, ev_key, ev_delta, ev_data, attempts + 1, 'why', $4::interval) from pgtally.get_batch_events($2) where ev_key = $3::text`, [queue, batch.batch_id, key, retryIn])

  test('come in a batch of their own, in turn with new ones', async () => {
    const queue = await createQueue()
    await insert(queue, 1, 2)
    const first = await claim(queue)
    await fail(queue, first, 1, '0')
    await fail(queue, first, 2, null)
    await finish(first)
    await insert(queue, 3)
    const second = await claim(queue)
    expect(await events(second)).toEqual(['1'])
    await fail(queue, second, 1, '0')
    await finish(second)
    const third = await claim(queue)
    expect(await events(third)).toEqual(['3'])
    await finish(third)
    const fourth = await claim(queue)
    expect(await events(fourth)).toEqual(['1'])
    await finish(fourth)
    expect(await due(queue)).toBe(false)
    expect(await column(db.pool, `select ev_key from pgtally.dead_letters($1, 'c')`, [queue])).toEqual(['2'])
  })
})
