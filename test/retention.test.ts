import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, column, createBlog, installed, like, outcome, pid, stored, value, type Session } from './support/fixtures.ts'

const main = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url))
let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

async function cli(...args: string[]): Promise<{ code: number | null; output: string }> {
  const child = spawn(process.execPath, [main, ...args, '--database-url', db.connectionString], { stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text))
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, output }
}

/** The rotation period and how long events are kept. */
const times = (queue: string) => value<string>(db.pool, `select rotation_period || ', ' || retain from pgtally.queue where name = $1`, [queue])

describe('how long events are kept is said when a counter or queue is created', () => {
  test('and the rotation period follows, where that is not given', async () => {
    expect(await tally.createCounter('short', { retainMs: 60_000 })).toBe(true)
    expect(await times('short')).toBe('00:05:00, 00:01:00')
    expect(await tally.createCounter('long', { retainMs: 3_600_000 })).toBe(true)
    expect(await times('long')).toBe('01:00:00, 01:00:00')
    expect(await tally.createCounter('both', { retainMs: 1000, rotationPeriodMs: 2000 })).toBe(true)
    expect(await times('both')).toBe('00:00:02, 00:00:01')
    await db.pool.query(`select pgtally.create_queue('queue', retain => '1 day')`)
    expect(await times('queue')).toBe('1 day, 1 day')
    expect(await cli('counter', 'create', 'by hand', '--retain', '1h')).toMatchObject({ code: 0 })
    expect(await times('by hand')).toBe('01:00:00, 01:00:00')
  })

  test('and the same again is no conflict, but another time is', async () => {
    await tally.createCounter('kept', { retainMs: 3_600_000 })
    expect(await tally.createCounter('kept', { retainMs: 3_600_000 })).toBe(false)
    expect(await tally.createCounter('kept', { retainMs: 3_600_000, rotationPeriodMs: 3_600_000 })).toBe(false)
    for (const retainMs of [undefined, 0, 1000, 7_200_000]) {
      await expect(tally.createCounter('kept', { retainMs })).rejects.toMatchObject({ code: 'DEFINITION_CONFLICT', message: expect.stringContaining('retain is 01:00:00, not') })
    }
    expect(await cli('counter', 'create', 'kept', '--retain', '2h')).toMatchObject({ code: 1, output: expect.stringContaining('another definition') })
    await db.pool.query(`select pgtally.create_queue('kept queue', retain => '1 hour')`)
    expect(await value(db.pool, `select pgtally.create_queue('kept queue', retain => '1 hour')`)).toBe(false)
    await expect(db.pool.query(`select pgtally.create_queue('kept queue')`)).rejects.toMatchObject({ code: 'TL002', message: expect.stringContaining('01:00:00') })
    expect(await times('kept')).toBe('01:00:00, 01:00:00')
  })

  test('but not longer than the rotation period, nor less than nothing', async () => {
    for (const definition of [{ retainMs: 3000, rotationPeriodMs: 2000 }, { retainMs: -1 }, { retainMs: 0.5 }]) {
      await expect(tally.createCounter('refused', definition)).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringMatching(/"refused"/) })
    }
    expect(await cli('counter', 'create', 'refused', '--retain', '1h', '--rotation-period', '60s')).toMatchObject({ code: 2, output: expect.stringContaining('cannot be kept for 01:00:00') })
    for (const retain of [`'-1 second'`, 'null', `'1 hour'`]) {
      await expect(db.pool.query(`select pgtally.create_queue('refused', rotation_period => '1 minute', retain => ${retain})`)).rejects.toMatchObject({ code: 'TL003' })
    }
    expect(await value(db.pool, `select count(*)::int from pgtally.queue where name = 'refused'`)).toBe(0)
  })

  test('and not of a counter that follows the queue of another', async () => {
    await tally.createCounter('followed', { retainMs: 3_600_000 })
    await expect(tally.createCounter('following', { queue: 'followed', retainMs: 1000 })).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  })
})

let queues = 0

/** A queue whose slots change every second, with a consumer `c` of it. */
async function createQueue(retain = '1 second', rotationPeriod = '1 second'): Promise<string> {
  const queue = `queue ${++queues}`
  await db.pool.query(`select pgtally.create_queue($1, 'text', $2, $3), pgtally.register_consumer($1, 'c')`, [queue, rotationPeriod, retain])
  return queue
}

const emit = (session: Session, queue: string, key: string) => session.query('select pgtally.insert_event($1, $2::text)', [queue, key])
const next = (session: Session, queue: string, maxEvents = 100_000) => value<string | null>(session, `select pgtally.next_batch($1, 'c', $2)`, [queue, maxEvents])
const events = (session: Session, batch: string | null) => column<string>(session, 'select ev_key from pgtally.get_batch_events($1) order by ev_key', [batch])
const seek = (session: Session, queue: string, since: string) => value<string>(session, `select pgtally.seek($1, 'c', $2)`, [queue, since]).then(Number)
const clock = () => value<string>(db.pool, 'select clock_timestamp()::text')
const rotate = (queue: string) => value<number>(db.pool, 'select pgtally.rotate($1)', [queue])
const tableOf = async (queue: string) => `pgtally.event_${await value<number>(db.pool, 'select pgtally.queue_id($1)', [queue])}`
const currentSlot = (queue: string) => value<number>(db.pool, 'select current_slot from pgtally.queue_status() where name = $1', [queue])

async function nextSlot(queue: string): Promise<void> {
  const slot = await currentSlot(queue)
  await waitFor(async () => (await currentSlot(queue)) !== slot, { what: 'the next slot' })
}

/** One batch, finished; its keys. */
async function take(queue: string, maxEvents?: number): Promise<string[]> {
  const batch = await next(db.pool, queue, maxEvents)
  if (batch === null) return []
  const keys = await events(db.pool, batch)
  await db.pool.query('select pgtally.finish_batch($1)', [batch])
  return keys
}

/** As if all batches had been finished long ago; otherwise those of the last minute keep a slot anyway, or of the last period where that is shorter. */
async function age(queue: string): Promise<void> {
  await db.pool.query(
    // One after the other: each locks many rows, in any order.
    `with locked as materialized (select consumer_id from pgtally.consumer where queue_id = pgtally.queue_id($1) order by 1 for update)
    update pgtally.batch b set finished_at = finished_at - interval '1 hour' from locked where locked.consumer_id = b.consumer_id`,
    [queue],
  )
}

describe('events that every consumer has finished', () => {
  test('are kept for as long as was said, and then go', async () => {
    const queue = await createQueue()
    const table = await tableOf(queue)
    const log = `log_${queues}`
    await db.pool.query(`create table ${log} (key text, at timestamptz)`)
    const reader = await db.connect()
    let emptied = 0
    for (let n = 0; emptied < 3; n++) {
      await db.pool.query(`with e as (select pgtally.insert_event($1, $2::text)) insert into ${log} select $2, clock_timestamp() from e`, [queue, `event ${n}`])
      await take(queue)
      await age(queue)
      emptied += await rotate(queue)
      // With the lock no slot is emptied before the look at the clock and the events.
      await reader.query(`begin; lock table ${table} in access share mode`)
      const lost = await column(reader, `select key from ${log} where at > clock_timestamp() - interval '1 second' and key not in (select ev_key from ${table})`)
      await reader.query('commit')
      expect(lost).toEqual([])
    }
    expect(await value(db.pool, `select (select count(*) from ${table}) < (select count(*) from ${log})`)).toBe(true)
    expect(new Set(await column(db.pool, `select mod(date_part('epoch', at)::int8, 3) from ${log}`)).size).toBe(3)
    await waitFor(async () => (await rotate(queue)) + (await value<number>(db.pool, `select count(*)::int from ${table}`)) === 0, { what: 'empty slots' })
  })

  test('take up no more space with a worker, which needs nothing else to empty the slots', async () => {
    const blog = await createBlog(db, tally, { rest: { rotationPeriodMs: 1000, retainMs: 1000 } })
    const table = await tableOf(blog.counter)
    const files = () => value<string>(db.pool, 'select array_agg(pg_relation_filenode(inhrelid) order by inhrelid)::text from pg_inherits where inhparent = $1::regclass', [table])
    await using worker = tally.worker({ pollIntervalMs: 20 })
    const seen = new Set<string>()
    await waitFor(async () => {
      await like(db.pool, blog, 1)
      return seen.add(await files()).size === 4
    }, { what: 'three slots to be emptied' })
    await waitFor(async () => (await value<number>(db.pool, `select count(*)::int from ${table}`)) === 0, { what: 'empty slots' })
    expect(await stored(db.pool, blog)).toEqual({ 1: await value(db.pool, `select count(*)::int from ${blog.likes}`) })
    await worker.stop()
  })
})

describe('seek', () => {
  test('gives again what was emitted since then, whole transactions, each event once', async () => {
    const queue = await createQueue()
    const [earlier, straddling, silent, later] = await Promise.all([db.connect(), db.connect(), db.connect(), db.connect()])
    for (const session of [earlier, straddling, silent, later]) await session.query('begin')
    await emit(earlier, queue, 'of a transaction that began and ended before')
    await emit(db.pool, queue, 'before')
    await emit(straddling, queue, 'straddling, before')
    await emit(silent, queue, 'of a transaction that wrote nothing since')
    await earlier.query('commit')
    expect(await take(queue)).toHaveLength(2)

    const since = await clock()
    await emit(straddling, queue, 'straddling, since')
    await emit(db.pool, queue, 'since')
    await straddling.query('commit')
    expect(await take(queue)).toEqual(['since', 'straddling, before', 'straddling, since'])
    await emit(db.pool, queue, 'pending')
    await emit(later, queue, 'in progress')

    expect(await seek(db.pool, queue, since)).toBe(4)
    expect(await take(queue)).toEqual(['pending', 'since', 'straddling, before', 'straddling, since'])
    await silent.query('commit')
    await later.query('commit')
    expect(await take(queue)).toEqual(['in progress', 'of a transaction that wrote nothing since'])
    expect(await take(queue)).toEqual([])
  })

  test('never moves a consumer on', async () => {
    const queue = await createQueue()
    await emit(db.pool, queue, 'a')
    const open = await db.connect()
    await open.query('begin')
    await emit(open, queue, 'open')
    for (const since of [await clock(), 'infinity', 'now']) expect(await seek(db.pool, queue, since)).toBe(1)
    await emit(db.pool, queue, 'b')
    await open.query('commit')
    expect(await seek(db.pool, queue, 'tomorrow')).toBe(3)
    expect(await take(queue)).toEqual(['a', 'b', 'open'])
    expect(await seek(db.pool, queue, 'infinity')).toBe(0)
    expect(await take(queue)).toEqual([])
    expect(await seek(db.pool, queue, '-infinity')).toBe(3)
    expect(await seek(db.pool, queue, 'infinity')).toBe(3)
    expect(await take(queue)).toEqual(['a', 'b', 'open'])
  })

  test('forgets an open batch, whose events come again', async () => {
    const queue = await createQueue()
    await emit(db.pool, queue, 'a')
    const batch = await next(db.pool, queue)
    expect(await events(db.pool, batch)).toEqual(['a'])
    await emit(db.pool, queue, 'b')
    expect(await seek(db.pool, queue, 'infinity')).toBe(2)
    await expect(events(db.pool, batch)).rejects.toMatchObject({ code: 'TL001' })
    await expect(db.pool.query('select pgtally.finish_batch($1)', [batch])).rejects.toMatchObject({ code: 'TL001', hint: expect.stringContaining('roll this transaction back') })
    expect(await take(queue)).toEqual(['a', 'b'])
  })

  test('waits for a transaction that finishes the open batch', async () => {
    const queue = await createQueue()
    await emit(db.pool, queue, 'a')
    const batch = await next(db.pool, queue)
    await emit(db.pool, queue, 'b')
    const [finishing, seeking] = [await db.connect(), await db.connect()]
    await finishing.query('begin')
    await finishing.query('select pgtally.finish_batch($1)', [batch])
    const backend = await pid(seeking)
    const left = seek(seeking, queue, 'infinity')
    await blocked(db, backend)
    await finishing.query('commit')
    expect(await left).toBe(1)
    expect(await take(queue)).toEqual(['b'])
  })

  test('of a batch that was cut gives again what it had, and the rest', async () => {
    const queue = await createQueue()
    const long = await db.connect()
    await long.query('begin')
    await emit(long, queue, 'long')
    const since = await clock()
    for (let n = 0; n < 6; n++) await emit(db.pool, queue, `single ${n}`)
    expect(await take(queue, 2)).toEqual(['single 0', 'single 1'])
    expect(await seek(db.pool, queue, since)).toBe(6)
    expect(await take(queue, 4)).toEqual(['single 0', 'single 1', 'single 2', 'single 3'])
    await long.query('commit')
    expect(await seek(db.pool, queue, 'infinity')).toBe(3)
    expect(await take(queue)).toEqual(['long', 'single 4', 'single 5'])
  })

  test('concerns no other consumer', async () => {
    const queue = await createQueue()
    await db.pool.query(`select pgtally.register_consumer($1, 'other')`, [queue])
    await db.pool.query('select pgtally.create_counter($1, queue => $2)', [`count of ${queue}`, queue])
    await emit(db.pool, queue, 'a')
    await applyAll(db.pool, `count of ${queue}`)
    await take(queue)
    const other = await value<string>(db.pool, `select pgtally.next_batch($1, 'other')`, [queue])
    expect(await seek(db.pool, queue, '-infinity')).toBe(1)
    await applyAll(db.pool, `count of ${queue}`)
    expect(await tally.counter<string>(`count of ${queue}`).get('a')).toBe(1)
    expect(await events(db.pool, other)).toEqual(['a'])
  })

  test('is refused where it would count twice, and where it cannot be', async () => {
    await tally.createCounter('a counter', {})
    await expect(db.pool.query(`select pgtally.seek('a counter', 'a counter', now())`)).rejects.toMatchObject({ code: 'TL010', message: expect.stringContaining('"a counter"') })
    const queue = await createQueue()
    await expect(db.pool.query(`select pgtally.seek('nowhere', 'c', now())`)).rejects.toMatchObject({ code: 'TL001' })
    await expect(db.pool.query(`select pgtally.seek($1, 'nobody', now())`, [queue])).rejects.toMatchObject({ code: 'TL001' })
    const repeatable = await db.connect()
    await repeatable.query('begin isolation level repeatable read')
    await expect(seek(repeatable, queue, 'now')).rejects.toMatchObject({ code: 'TL004' })
    await repeatable.query('rollback')
    await db.pool.query('update pgtally.consumer set system_identifier = 1 where queue_id = pgtally.queue_id($1)', [queue])
    await expect(seek(db.pool, queue, 'now')).rejects.toMatchObject({ code: 'TL005', hint: expect.stringContaining('pgtally rebase') })
  })
})

describe('a slot that is about to be emptied', () => {
  /** With one finished event that nothing keeps any more. */
  async function emptiable(): Promise<string> {
    const queue = await createQueue('0')
    await emit(db.pool, queue, 'a')
    await take(queue)
    await nextSlot(queue)
    await age(queue)
    return queue
  }

  test('is kept for a consumer that was set back, until it has been past the events again', async () => {
    const queue = await emptiable()
    const session = await db.connect()
    await session.query('begin')
    expect(await seek(session, queue, '-infinity')).toBe(1)
    expect(await rotate(queue)).toBe(0)
    await session.query('commit')
    expect(await rotate(queue)).toBe(0)
    await age(queue)
    expect(await rotate(queue)).toBe(0)
    expect(await take(queue)).toEqual(['a'])
    await waitFor(async () => {
      await age(queue)
      return (await rotate(queue)) === 1
    }, { what: 'the slot to be emptied' })
  })

  test('makes a seek wait, which then counts what is left', async () => {
    const queue = await emptiable()
    await emit(db.pool, queue, 'b')
    const [rotating, seeking] = [await db.connect(), await db.connect()]
    await rotating.query('begin')
    await waitFor(async () => (await value<number>(rotating, 'select pgtally.rotate($1)', [queue])) === 1, { what: 'the slot to be emptied' })
    const backend = await pid(seeking)
    const result = outcome(seek(seeking, queue, '-infinity').then((count) => expect(count).toBe(1)))
    await blocked(db, backend)
    await rotating.query('commit')
    expect(await result).toBe('done')
    expect(await take(queue)).toEqual(['b'])
  })

  test('loses nothing with seeks, rotations, takers and writers all at once', async () => {
    const queue = await createQueue()
    const eventTable = await tableOf(queue)
    const table = `emitted_${queues}`
    await db.pool.query(`create table ${table} (key text, at timestamptz)`)
    const stop = new AbortController()
    const until = async (work: () => Promise<unknown>) => {
      while (!stop.signal.aborted) await work()
    }
    let number = 0
    const write = async () => {
      const session = await db.connect()
      await session.query('begin')
      for (let n = 0; n < 3; n++) {
        const key = `event ${++number}`
        await session.query(`insert into ${table} values ($1, clock_timestamp())`, [key])
        await emit(session, queue, key)
      }
      await session.query('commit')
      await session.end()
    }
    const rotateAged = async () => {
      await age(queue)
      emptied += await rotate(queue)
    }
    let emptied = 0
    const background = Promise.all([until(write), until(write), until(rotateAged), until(rotateAged)])
    const done = (rounds: number) => rounds >= 15 && emptied >= 2
    try {
      for (let rounds = 0, end = performance.now() + 20_000; !done(rounds) && performance.now() < end; rounds++) {
        const session = await db.connect()
        await session.query('begin')
        // From here on nothing is given up; so whatever has committed must be among what is given again.
        await session.query(`lock table ${eventTable} in access share mode`)
        const since = await value<string>(session, `select (clock_timestamp() - interval '1 second')::text`)
        const expected = await column<string>(session, `select key from ${table} where at >= $1`, [since])
        await seek(session, queue, since)
        await session.query('commit')
        await session.end()
        const given: string[] = []
        for (let keys = await take(queue); keys.length > 0; keys = await take(queue)) given.push(...keys)
        expect(given.length).toBe(new Set(given).size)
        expect(expected.filter((key) => !given.includes(key))).toEqual([])
      }
    } finally {
      stop.abort()
      await background
    }
    expect(emptied).toBeGreaterThanOrEqual(2)
  })
})
