import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'

import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import type { Counter, PgtallyError, Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { column, createBlog, installed, outcome, value } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally
let counters = 0

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const never = { flushIntervalMs: 2 ** 31 - 1 }

async function createViews(keyType: 'text' | 'uuid' | 'smallint' | 'bigint' = 'text'): Promise<Counter<string | number | bigint>> {
  const name = `views_${++counters}`
  await tally.createCounter(name, { keyType })
  return tally.counter(name)
}

/** What is counted, applied or not. */
async function counts(counter: Counter<string | number | bigint>, keys: (string | number)[]): Promise<number[]> {
  const found = await counter.getMany(keys, { fresh: true })
  return keys.map((key) => found.get(key)?.count ?? 0)
}

const events = ({ name }: Counter<never> | Counter) => value<number>(db.pool, 'select pending_events::int from pgtally.counter_status() where name = $1', [name])

describe('sums', () => {
  test('are written when flushed, one event for each key, and count as every other', async () => {
    const counter = await createViews()
    await using views = tally.buffered(counter.name, never)
    for (let n = 1; n <= 1000; n++) views.add(`page ${n % 3}`)
    views.add('page 0', 1_000_000)
    views.add('page 1', -5n)
    views.add('', 7)
    views.add('nothing', 3)
    views.add('nothing', -3)
    // Whichever way it is written in JavaScript.
    for (const key of [5, 5n, '5']) views.add(key)
    expect(await events(counter)).toBe(0)
    await views.flush()
    expect(await events(counter)).toBe(5)
    expect(await counts(counter, ['page 0', 'page 1', 'page 2', '', 'nothing', '5'])).toEqual([1_000_333, 329, 333, 7, 0, 3])
    await views.flush()
    await counter.add(db.pool, 'page 0', 1)
    expect(await events(counter)).toBe(6)
    expect(await tally.drain()).toMatchObject({ failed: [] })
    expect(await counter.get('page 0')).toBe(1_000_334)
  })

  test('are written by time, without being asked', async () => {
    const counter = await createViews('bigint')
    await using views = tally.buffered(counter.name, { flushIntervalMs: 5 })
    for (let round = 1; round <= 3; round++) {
      views.add(1, round)
      await waitFor(async () => (await events(counter)) === round, { what: `flush ${round}` })
      expect(await counts(counter, [1])).toEqual([(round * (round + 1)) / 2])
    }
  })

  test('are written by their number, without waiting for the time; many keys in several transactions', async () => {
    const counter = await createViews('bigint')
    await using views = tally.buffered(counter.name, { ...never, maxKeys: 100 })
    for (let key = 0; key < 99; key++) views.add(key)
    views.add(98)
    await views.flush()
    for (let key = 0; key < 100; key++) views.add(key)
    await waitFor(async () => (await events(counter)) === 199, { what: 'the hundredth key' })
    for (let key = 0; key < 1050; key++) views.add(key)
    await views.flush()
    expect(await counts(counter, [0, 98, 99, 1049])).toEqual([3, 4, 2, 1])
    const queue = await value<number>(db.pool, 'select queue_id from pgtally.queue where name = $1', [counter.name])
    expect(Math.max(...(await column<number>(db.pool, `select count(*)::int from pgtally.event_${queue} group by ev_txid`)))).toBeLessThanOrEqual(100)
  })

  test('of what is added while a flush is under way are in the next, which another flush() waits for', async () => {
    const counter = await createViews()
    await using views = tally.buffered(counter.name, { ...never, maxKeys: 3 })
    const queue = await value<number>(db.pool, 'select queue_id from pgtally.queue where name = $1', [counter.name])
    const holder = await db.connect()
    for (let round = 1; round <= 2; round++) {
      await holder.query(`begin; lock table pgtally.event_${queue} in share mode`)
      views.add('a')
      const first = views.flush()
      await waitFor(async () => value<boolean>(db.pool, `select exists (select from pg_locks where not granted and relation = 'pgtally.event_${queue}'::regclass)`), { what: 'the flush to be under way' })
      views.add('a')
      for (const key of ['b', 'c', 'd']) views.add(key)
      const next = [views.flush(), views.flush()]
      await holder.query('rollback')
      await Promise.all([first, ...next])
      expect(await counts(counter, ['a', 'b', 'c', 'd'])).toEqual([2 * round, round, round, round])
    }
  })
})

describe('what will not do', () => {
  test('is refused when it is added', async () => {
    const counter = await createViews()
    await using views = tally.buffered(counter.name, never)
    const add = views.add.bind(views) as (...args: unknown[]) => void
    for (const args of [[null], [undefined], [1.5], [Number.NaN], [{}], ['a', 0.5], ['a', 2 ** 53], ['a', null], ['a', '1'], [2 ** 53, 1]]) {
      expect(() => add(...args)).toThrow(expect.objectContaining({ name: 'PgtallyError', code: 'INVALID_EVENT', message: expect.stringContaining(counter.name) }))
    }
    views.add('a', 2n ** 63n - 1n)
    for (const delta of [1, 2n ** 63n]) expect(() => views.add('a', delta)).toThrow(expect.objectContaining({ code: 'INVALID_EVENT', message: expect.stringContaining('"a"') }))
    views.add('b', 1n - 2n ** 63n)
    expect(() => views.add('b', -1)).toThrow(expect.objectContaining({ code: 'INVALID_EVENT' }))
    await views.flush()
    expect(await column(db.pool, 'select count::text from pgtally.get_fresh_counts($1, $2) f, lateral (select f.stored + f.carried + f.pending as count) s order by 1', [counter.name, ['a', 'b']])).toEqual(['-9223372036854775807', '9223372036854775807'])
    for (const options of [{ flushIntervalMs: 0 }, { flushIntervalMs: 2 ** 31 }, { maxKeys: 0 }, { onError: 1 }, { signal: null }]) {
      expect(() => tally.buffered(counter.name, options as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(Object.keys(options)[0] ?? '') }))
    }
  })

  test.each([
    ['uuid', ['no uuid', '', 'b1c2'], ['00000000-0000-0000-0000-000000000001', '{00000000-0000-0000-0000-000000000002}'.toUpperCase()]],
    ['smallint', ['32768', 'x', '1.0'], ['1', '-32768', ' 2']],
    ['text', ['a\u0000b', 'x'.repeat(2001), 'é'.repeat(1001)], ['', 'x'.repeat(2000), `'"\\{},NULL`]],
  ] as const)('a key that a counter of %s cannot have is dropped and reported, and all others are written', async (keyType, bad, good) => {
    const counter = await createViews(keyType)
    const errors: unknown[] = []
    const views = tally.buffered(counter.name, { flushIntervalMs: 5, onError: (error) => errors.push(error) })
    for (const key of good) views.add(key, 2)
    for (const key of bad) views.add(key, 7)
    await waitFor(async () => (await counts(counter, [...good])).every((count) => count === 2), { what: 'the good keys' })
    await waitFor(async () => errors.length > 0, { what: 'the report' })
    expect(errors).toMatchObject([{ code: 'INVALID_EVENT', message: expect.stringMatching(new RegExp(`"${counter.name}": 7 for the key .* dropped, and those for ${bad.length - 1} more keys`)), cause: expect.any(Error) }])
    expect(bad.some((key) => (errors[0] as Error).message.includes(`"${key.slice(0, 100)}"`))).toBe(true)
    // They are gone.
    for (const key of good) views.add(key)
    await views.close()
    expect(errors).toHaveLength(1)
    expect(await counts(counter, [...good])).toEqual(good.map(() => 3))
    expect(await events(counter)).toBe(2 * good.length)
  })

  test('one bad key among thousands', async () => {
    const counter = await createViews('bigint')
    await using views = tally.buffered(counter.name, never)
    for (let key = 0; key < 5000; key++) views.add(key)
    views.add('bad')
    await expect(views.flush()).rejects.toMatchObject({ code: 'INVALID_EVENT', message: expect.stringMatching(/: 1 for the key "bad" was dropped: .*bad/) })
    expect(await events(counter)).toBe(5000)
    await views.flush()
    expect(await events(counter)).toBe(5000)
  })

  test('a counter that there is not, or that counts rows: what was added is kept', async () => {
    const name = `views_${++counters}`
    const views = tally.buffered(name, never)
    views.add(1, 3)
    for (let round = 0; round < 2; round++) await expect(views.flush()).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining(name) })
    views.add(1, 4)
    await tally.createCounter(name, { keyType: 'bigint' })
    await views.close()
    expect(await counts(tally.counter(name), [1])).toEqual([7])

    const blog = await createBlog(db, tally)
    const likes = tally.buffered(blog.counter, never)
    likes.add(1)
    likes.add(2)
    const counted = { code: 'INVALID_EVENT', message: expect.stringMatching(new RegExp(`${blog.likes}.*Insert`)) }
    await expect(likes.flush()).rejects.toMatchObject(counted)
    await expect(likes.close()).rejects.toMatchObject(counted)
    expect(await events(tally.counter(blog.counter))).toBe(0)

    const elsewhere = createTally({ pool: db.pool, schema: 'not_there' }).buffered('views', never)
    elsewhere.add('a')
    await expect(elsewhere.close()).rejects.toMatchObject({ code: 'NOT_INSTALLED' })
  })
})

describe('the end', () => {
  test('close() writes what is left; nothing is taken after it', async () => {
    const counter = await createViews()
    {
      await using views = tally.buffered(counter.name, never)
      views.add('a')
    }
    const views = tally.buffered(counter.name, never)
    views.add('a', 2)
    await Promise.all([views.close(), views.close()])
    expect(() => views.add('a')).toThrow(expect.objectContaining({ code: 'CLOSED', message: expect.stringContaining(counter.name) }))
    await views.close()
    expect(await counts(counter, ['a'])).toEqual([3])
  })

  test('a process ends by itself, and not before it has written', async () => {
    const counter = await createViews()
    const run = async (body: string) => {
      const script = `
        import pg from 'pg'
        import { createTally } from ${JSON.stringify(new URL('../src/index.ts', import.meta.url).href)}
        const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, allowExitOnIdle: true })
        const views = createTally({ pool }).buffered('${counter.name}', { flushIntervalMs: 200 })
        ${body}`
      const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { env: { ...process.env, DATABASE_URL: db.connectionString }, stdio: ['ignore', 'inherit', 'inherit'], cwd: new URL('..', import.meta.url) })
      return (await once(child, 'exit'))[0] as number
    }
    expect(await run('')).toBe(0)
    expect(await run(`views.add('a', 5)`)).toBe(0)
    expect(await counts(counter, ['a'])).toEqual([5])
    // As documented.
    expect(await run(`views.add('a', 5); process.exit()`)).toBe(0)
    expect(await counts(counter, ['a'])).toEqual([5])
  })
})

describe('add_events()', () => {
  test('takes all or none, needs no right but EXECUTE, and gives the token of what it wrote', async () => {
    const counter = await createViews('bigint')
    const addEvents = (keys: unknown, deltas: unknown) => value<string>(db.pool, 'select pgtally.add_events($1, $2, $3)::text', [counter.name, keys, deltas])
    const token = await addEvents(['1', '2', '1'], [5, 6, 7])
    expect(await counts(counter, [1, 2])).toEqual([12, 6])
    expect(await outcome(counter.waitFor(token, { timeoutMs: 0 }))).toMatchObject({ code: 'TIMEOUT' })
    for (const [keys, deltas, code] of [[['3', null], [1, 1], 'TL007'], [['3', '4'], [1, null], 'TL007'], [['3'], [1, 2], 'TL007'], [['3', 'x'], [1, 1], '22P02'], [null, [1], 'TL007']] as const) {
      expect(await outcome(addEvents(keys, deltas))).toMatchObject({ code })
    }
    await addEvents([], [])
    expect(await events(counter)).toBe(3)
    const texts = await createViews('text')
    expect(await outcome(value(db.pool, 'select pgtally.add_events($1, $2, $3)', [texts.name, ['a', 'x'.repeat(2001)], [1, 1]]))).toMatchObject({ code: 'TL007', message: expect.stringContaining('2001 bytes') })
    await tally.drain()
    await counter.waitFor(token, { timeoutMs: 0 })
    expect(await counter.get(1)).toBe(12)

    const role = `pgtally_test_${randomBytes(6).toString('hex')}`
    await db.pool.query(`create role ${role} login password 'test'; grant usage on schema pgtally to ${role}; grant execute on function pgtally.add_events to ${role}`)
    try {
      const url = new URL(db.connectionString)
      url.username = role
      url.password = 'test'
      const pool = new pg.Pool({ connectionString: url.href, max: 1 })
      const views = createTally({ pool }).buffered(counter.name, never)
      views.add(1)
      views.add('x')
      expect((await outcome(views.close()) as PgtallyError).code).toBe('INVALID_EVENT')
      await pool.end()
      expect(await counts(counter, [1])).toEqual([13])
    } finally {
      await db.pool.query(`drop owned by ${role}; drop role ${role}`)
    }
  })
})
