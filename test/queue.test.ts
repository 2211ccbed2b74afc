import { beforeAll, describe, expect, test } from 'vitest'

import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { blocked, column, installed, outcome, pid, value, type Session } from './support/fixtures.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createTestDatabase()
  await installed(db)
  return db.drop
})

let queues = 0

/** A queue with text keys and one consumer named `c`. */
async function createQueue(): Promise<string> {
  const queue = `queue_${++queues}`
  await db.pool.query(`select pgtally.create_queue($1, 'text')`, [queue])
  await db.pool.query(`select pgtally.register_consumer($1, 'c')`, [queue])
  return queue
}

const emit = (session: Session, queue: string, key: string) => session.query('select pgtally.insert_event($1, $2::text)', [queue, key])
const next = (session: Session, queue: string, maxEvents: number | null = 100_000) =>
  value<string | null>(session, `select pgtally.next_batch($1, 'c', $2)`, [queue, maxEvents])
const events = (session: Session, batch: string | null) => column<string>(session, 'select ev_key from pgtally.get_batch_events($1) order by ev_key', [batch])
const finish = (session: Session, batch: string | null) => session.query('select pgtally.finish_batch($1)', [batch])

/** Takes one batch in a transaction of its own. */
async function take(queue: string, maxEvents: number | null = 100_000): Promise<string[]> {
  const batch = await next(db.pool, queue, maxEvents)
  if (batch === null) return []
  const keys = await events(db.pool, batch)
  await finish(db.pool, batch)
  return keys
}

test('events arrive once, with their data, and rolled-back ones never', async () => {
  const queue = await createQueue()
  const client = await db.connect()
  await client.query('begin')
  await emit(client, queue, 'kept')
  await client.query('savepoint s')
  await emit(client, queue, 'undone')
  await client.query('rollback to s')
  await emit(client, queue, 'after')
  expect(await take(queue)).toEqual([])
  await client.query('commit')
  await client.query('begin')
  await emit(client, queue, 'never')
  await client.query('rollback')
  await db.pool.query(`select pgtally.insert_event($1, 'full'::text, -3, '{"a": 1}')`, [queue])

  const batch = await next(db.pool, queue)
  expect(await events(db.pool, batch)).toEqual(['after', 'full', 'kept'])
  const { rows } = await db.pool.query(`select ev_delta::text, ev_data, ev_txid is not null as txid from pgtally.get_batch_events($1) where ev_key = 'full'`, [batch])
  expect(rows).toEqual([{ ev_delta: '-3', ev_data: { a: 1 }, txid: true }])
  await finish(db.pool, batch)
  expect(await take(queue)).toEqual([])
})

test('each consumer gets every event since it was registered', async () => {
  const queue = await createQueue()
  await emit(db.pool, queue, 'before')
  expect(await value(db.pool, `select pgtally.register_consumer($1, 'late')`, [queue])).toBe(true)
  await emit(db.pool, queue, 'after')
  const late = await value<string>(db.pool, `select pgtally.next_batch($1, 'late')`, [queue])
  expect(await events(db.pool, late)).toEqual(['after'])
  expect(await take(queue)).toEqual(['after', 'before'])
})

test('a consumer registered while an event is uncommitted gets it', async () => {
  const queue = await createQueue()
  const client = await db.connect()
  await client.query('begin')
  await emit(client, queue, 'straddling')
  await db.pool.query(`select pgtally.register_consumer($1, 'late')`, [queue])
  await client.query('commit')
  const late = await value<string>(db.pool, `select pgtally.next_batch($1, 'late')`, [queue])
  expect(await events(db.pool, late)).toEqual(['straddling'])
})

describe('a boundary in another isolation level', () => {
  for (const level of ['repeatable read', 'serializable']) {
    test(`is refused in ${level}`, async () => {
      const queue = await createQueue()
      await emit(db.pool, queue, 'a')
      const batch = await next(db.pool, queue)
      const refused = async (sql: string, values: unknown[]) => {
        const client = await db.connect()
        await client.query(`begin isolation level ${level}`)
        await expect(client.query(sql, values)).rejects.toMatchObject({ code: 'TL004', hint: expect.stringContaining('READ COMMITTED') })
        await client.query('rollback')
      }
      await refused(`select pgtally.next_batch($1, 'c')`, [queue])
      await refused('select * from pgtally.get_batch_events($1)', [batch])
      await refused('select pgtally.rotate($1)', [queue])
      await refused(`select pgtally.register_consumer($1, 'other')`, [queue])
      await refused('select pgtally.create_counter($1)', [`counter of ${queue}`])
      await db.pool.query('select pgtally.create_counter($1, queue => $2)', [`follower of ${queue}`, queue])
      await refused('select pgtally.apply_batch($1)', [`follower of ${queue}`])
      await finish(db.pool, batch)
      expect(await take(queue)).toEqual([])
    })
  }
})

test('in an open transaction each event still arrives once', async () => {
  const queue = await createQueue()
  const open = await db.connect()
  await open.query('begin')
  await open.query('select pg_current_xact_id()')
  await emit(db.pool, queue, 'a')
  const first = await next(open, queue)
  expect(await events(open, first)).toEqual(['a'])
  await finish(open, first)
  await emit(db.pool, queue, 'b')
  const second = await next(open, queue)
  expect(await events(open, second)).toEqual(['b'])
  await finish(open, second)
  await emit(db.pool, queue, 'c')
  await open.query('commit')
  expect(await take(queue)).toEqual(['c'])
})

test('a batch that was rolled back to a savepoint comes again', async () => {
  const queue = await createQueue()
  const open = await db.connect()
  await emit(db.pool, queue, 'a')
  await open.query('begin; savepoint s')
  await finish(open, await next(open, queue))
  await open.query('rollback to s')
  await emit(db.pool, queue, 'b')
  await open.query('savepoint s2')
  const batch = await next(open, queue)
  expect(await events(open, batch)).toEqual(['a', 'b'])
  await finish(open, batch)
  await open.query('release s2; commit')
  expect(await take(queue)).toEqual([])
})

test('emit, take, emit in one transaction, with foreign commits between', async () => {
  const queue = await createQueue()
  const own = await db.connect()
  const seen: string[] = []
  const takeInside = async () => {
    const batch = await next(own, queue)
    if (batch === null) return
    seen.push(...(await events(own, batch)))
    await finish(own, batch)
  }
  await own.query('begin')
  await emit(own, queue, 'own 1')
  await emit(db.pool, queue, 'foreign 1')
  await takeInside()
  await emit(own, queue, 'own 2')
  await emit(db.pool, queue, 'foreign 2')
  await takeInside()
  await own.query('savepoint s')
  await emit(own, queue, 'own 3')
  await own.query('commit')
  expect(seen).toEqual(['foreign 1', 'foreign 2'])
  await emit(db.pool, queue, 'foreign 3')
  expect(await take(queue)).toEqual(['foreign 3', 'own 1', 'own 2', 'own 3'])
  expect(await take(queue)).toEqual([])
})

test('own uncommitted events do not hide those of others from a bounded batch', async () => {
  const queue = await createQueue()
  const own = await db.connect()
  await own.query('begin')
  for (let n = 0; n < 5; n++) await emit(own, queue, 'own')
  await emit(db.pool, queue, 'foreign 1')
  await emit(db.pool, queue, 'foreign 2')
  const batch = await next(own, queue, 2)
  expect(batch).not.toBeNull()
  expect(await events(own, batch)).toContain('foreign 1')
})

test('the same batch is given again until it is finished, and finished once', async () => {
  const queue = await createQueue()
  await emit(db.pool, queue, 'a')
  const [one, other] = [await db.connect(), await db.connect()]
  const otherPid = await pid(other)
  const batch = await next(one, queue)
  await emit(db.pool, queue, 'b')
  expect(await next(other, queue)).toBe(batch)
  await one.query('begin')
  await other.query('begin')
  expect(await events(one, batch)).toEqual(['a'])
  expect(await events(other, batch)).toEqual(['a'])
  await finish(one, batch)
  const second = outcome(finish(other, batch))
  await blocked(db, otherPid)
  await one.query('commit')
  expect(await second).toMatchObject({ code: 'TL001', hint: expect.stringContaining('roll this transaction back') })
  await other.query('rollback')
  expect(await take(queue)).toEqual(['b'])
})

test('a finish that is rolled back leaves the batch open', async () => {
  const queue = await createQueue()
  await emit(db.pool, queue, 'a')
  const batch = await next(db.pool, queue)
  const client = await db.connect()
  await client.query('begin')
  await finish(client, batch)
  await client.query('rollback')
  expect(await next(db.pool, queue)).toBe(batch)
  expect(await take(queue)).toEqual(['a'])
})

test('after reading a part, finish ends the whole batch', async () => {
  const queue = await createQueue()
  for (const key of ['a', 'b', 'c', 'd', 'e']) await emit(db.pool, queue, key)
  const batch = await next(db.pool, queue)
  expect(await column(db.pool, 'select ev_key from pgtally.get_batch_events($1) limit 2', [batch])).toHaveLength(2)
  expect(await events(db.pool, batch)).toHaveLength(5)
  await finish(db.pool, batch)
  expect(await take(queue)).toEqual([])
  await expect(events(db.pool, batch)).rejects.toMatchObject({ code: 'TL001' })
  await expect(finish(db.pool, batch)).rejects.toMatchObject({ code: 'TL001' })
})

test('a backlog is taken in bounded batches, a transaction is never divided', async () => {
  const queue = await createQueue()
  const long = await db.connect()
  await long.query('begin')
  await emit(long, queue, 'long')
  for (let n = 0; n < 10; n++) await emit(db.pool, queue, `single ${n}`)
  await db.pool.query(`select pgtally.insert_event($1, 'bulk ' || n) from generate_series(1, 7) n`, [queue])
  await emit(db.pool, queue, 'last')
  const sizes: number[] = []
  const all: string[] = []
  for (let keys = await take(queue, 3); keys.length > 0; keys = await take(queue, 3)) {
    sizes.push(keys.length)
    all.push(...keys)
    if (sizes.length === 2) await long.query('commit')
  }
  expect(all.toSorted()).toEqual(['last', 'long', ...Array.from({ length: 7 }, (_, n) => `bulk ${n + 1}`), ...Array.from({ length: 10 }, (_, n) => `single ${n}`)].toSorted())
  expect(sizes.filter((size) => size > 4)).toEqual([7])
  expect(new Set(all).size).toBe(all.length)
})

test('a prepared transaction holds back its own events only', async () => {
  const queue = await createQueue()
  const client = await db.connect()
  await client.query('begin')
  await emit(client, queue, 'prepared')
  await client.query(`prepare transaction '${queue}'`)
  try {
    await emit(db.pool, queue, 'a')
    expect(await take(queue)).toEqual(['a'])
    await emit(db.pool, queue, 'b')
    expect(await take(queue)).toEqual(['b'])
  } finally {
    await db.pool.query(`commit prepared '${queue}'`)
  }
  expect(await take(queue)).toEqual(['prepared'])
})

test('twenty at once make one queue and one consumer', async () => {
  const sessions = await Promise.all(Array.from({ length: 20 }, () => db.connect()))
  const made = await Promise.all(sessions.map((session) => value<boolean>(session, `select pgtally.create_queue('raced', 'text')`)))
  expect(made.filter(Boolean)).toHaveLength(1)
  const registered = await Promise.all(sessions.map((session) => value<boolean>(session, `select pgtally.register_consumer('raced', 'c')`)))
  expect(registered.filter(Boolean)).toHaveLength(1)
  await emit(db.pool, 'raced', 'a')
  expect(await take('raced')).toEqual(['a'])
  await Promise.all(sessions.map((session) => session.end()))
})

test('many takers of one consumer: each event is finished once', async () => {
  const queue = await createQueue()
  const finished: string[] = []
  let emitting = true
  const taker = async () => {
    const client = await db.connect()
    for (;;) {
      const last = !emitting
      await client.query('begin')
      const batch = await next(client, queue, 20)
      if (batch === null) {
        await client.query('commit')
        if (last) return
        continue
      }
      const keys = await events(client, batch)
      await finish(client, batch)
      await client.query('commit')
      finished.push(...keys)
    }
  }
  const takers = Array.from({ length: 4 }, taker)
  await Promise.all(
    Array.from({ length: 4 }, async (_, writer) => {
      for (let n = 0; n < 50; n++) await emit(db.pool, queue, `${writer}/${n}`)
    }),
  )
  emitting = false
  await Promise.all(takers)
  expect(finished).toHaveLength(200)
  expect(new Set(finished).size).toBe(200)
})

describe('what is refused', () => {
  test('NULL and over-long keys', async () => {
    const queue = await createQueue()
    await expect(db.pool.query('select pgtally.insert_event($1, null::text)', [queue])).rejects.toMatchObject({ code: 'TL007', message: expect.stringContaining(queue) })
    await expect(db.pool.query('select pgtally.insert_event($1, null)', [queue])).rejects.toMatchObject({ code: 'TL007' })
    await expect(db.pool.query(`select pgtally.insert_event($1, 'a'::text, null)`, [queue])).rejects.toMatchObject({ code: 'TL007' })
    await expect(emit(db.pool, queue, 'x'.repeat(2001))).rejects.toMatchObject({ code: 'TL007' })
    await emit(db.pool, queue, 'x'.repeat(2000))
    expect(await take(queue)).toHaveLength(1)
  })

  test('what does not exist, or is not for that', async () => {
    const queue = await createQueue()
    await expect(emit(db.pool, 'nowhere', 'a')).rejects.toMatchObject({ code: 'TL001', message: expect.stringContaining('nowhere') })
    await expect(next(db.pool, 'nowhere')).rejects.toMatchObject({ code: 'TL001' })
    await expect(db.pool.query(`select pgtally.next_batch($1, 'nobody')`, [queue])).rejects.toMatchObject({ code: 'TL001', message: expect.stringContaining('nobody') })
    await expect(finish(db.pool, '999999')).rejects.toMatchObject({ code: 'TL001' })
    await expect(db.pool.query(`select pgtally.create_queue($1, 'uuid')`, [queue])).rejects.toMatchObject({ code: 'TL002' })
    await expect(db.pool.query(`select pgtally.create_queue('dates', 'date')`)).rejects.toMatchObject({ code: 'TL003' })
    await expect(db.pool.query('select pgtally.drop_queue($1)', [queue])).rejects.toMatchObject({ code: 'TL010', message: expect.stringContaining('c') })
    await db.pool.query('select pgtally.create_counter($1, queue => $2)', [`count of ${queue}`, queue])
    await expect(db.pool.query('select pgtally.next_batch($1, $2)', [queue, `count of ${queue}`])).rejects.toMatchObject({ code: 'TL010' })
    await expect(db.pool.query('select pgtally.unregister_consumer($1, $2)', [queue, `count of ${queue}`])).rejects.toMatchObject({ code: 'TL010' })
  })
})

test('of another cluster: refused, nothing applied or lost, the others go on', async () => {
  const [queue, other] = [await createQueue(), await createQueue()]
  await emit(db.pool, queue, 'a')
  await emit(db.pool, other, 'b')
  const move = (by: number) =>
    db.pool.query('update pgtally.consumer set system_identifier = system_identifier + $2 where queue_id = pgtally.queue_id($1)', [queue, by])
  await move(1)
  await expect(next(db.pool, queue)).rejects.toMatchObject({ code: 'TL005', message: expect.stringContaining('"c"') })
  expect(await take(other)).toEqual(['b'])
  await move(-1)
  expect(await take(queue)).toEqual(['a'])
})

test('a boundary never moves backwards', async () => {
  const queue = await createQueue()
  await db.pool.query(
    `update pgtally.batch set end_boundary = '9000000000:9000000000:' where consumer_id = (select consumer_id from pgtally.consumer where queue_id = pgtally.queue_id($1))`,
    [queue],
  )
  await emit(db.pool, queue, 'a')
  await expect(next(db.pool, queue)).rejects.toMatchObject({ code: 'TL006' })
  await db.pool.query('select pgtally.rotate($1)', [queue])
})
