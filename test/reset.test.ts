import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import { createTally, type Counter, type Tally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, applyAll, blocked, createBlog, installed, like, outcome, pid, statusOf, value } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

interface Place {
  counter: Counter<string>
  /** Where the counts are stored. */
  table: string
  key: string
  column: string
  carry: string
}

let places = 0

/** A counter without a source, with the counts in a table of pgtally's own or in one of the user's. */
async function createPlace(kind: 'own' | 'user', rotationPeriodMs = 300_000): Promise<Place> {
  const name = `views_${++places}`
  if (kind === 'user') {
    await db.pool.query(`create table pages_${places} (path text primary key, views bigint); insert into pages_${places} select unnest(array['a', 'b', 'c'])`)
    await tally.createCounter(name, { target: { table: `pages_${places}`, key: 'path', column: 'views' }, rotationPeriodMs })
  } else {
    await tally.createCounter(name, { keyType: 'text', rotationPeriodMs })
  }
  const id = await value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [name])
  const at = kind === 'user' ? { table: `pages_${places}`, key: 'path', column: 'views' } : { table: `pgtally.count_${id}`, key: 'key', column: 'value' }
  return { counter: tally.counter<string>(name), carry: `pgtally.carry_${id}`, ...at }
}

const count = async ({ counter }: Place, key: string) => (await counter.get(key, { fresh: true })).count

async function settle({ counter }: Place): Promise<void> {
  await applyAll(db.pool, counter.name)
  await value(db.pool, 'select pgtally.apply_carried($1)', [counter.name])
}

describe.each(['own', 'user'] as const)('counts in a table of pgtally or the user: %s', (kind) => {
  test('what was committed is taken back, stored, carried or pending; what is in progress counts', async () => {
    const place = await createPlace(kind)
    const { counter } = place
    await counter.add(db.pool, 'a', 5)
    await counter.add(db.pool, 'b', 50)
    await settle(place)
    const [holder, early, undone] = [await db.connect(), await db.connect(), await db.connect()]
    await holder.query(`begin; select from ${place.table} where ${place.key} = 'a' for no key update`)
    await counter.add(db.pool, 'a', 3)
    await applyAll(db.pool, counter.name)
    await counter.add(db.pool, 'a', 2)
    await early.query('begin')
    await counter.add(early, 'a', 7)
    await undone.query('begin')
    await counter.add(undone, 'a', 1000)
    expect(await counter.get('a', { fresh: true })).toEqual({ count: 10, stored: 5, carried: 3, pending: 2 })

    await counter.reset('a')
    expect(await counter.get('a', { fresh: true })).toEqual({ count: 0, stored: 5, carried: -7, pending: 2 })
    expect(await count(place, 'b')).toBe(50)
    expect((await counter.get('a', { fresh: true, executor: early })).count).toBe(7)
    await early.query('commit')
    await undone.query('rollback')
    expect(await count(place, 'a')).toBe(7)
    await counter.add(db.pool, 'a', 100)
    await applyAll(db.pool, counter.name)
    expect(await counter.get('a', { fresh: true })).toEqual({ count: 107, stored: 5, carried: 102, pending: 0 })
    await holder.query('commit')
    await settle(place)
    expect(await counter.getMany(['a', 'b'])).toEqual(new Map([['a', 107], ['b', 50]]))
    expect(await value(db.pool, `select count(*)::int from ${place.carry}`)).toBe(0)
  })

  test('two at once take nothing twice', async () => {
    const place = await createPlace(kind)
    const { counter } = place
    await counter.add(db.pool, 'a', 5)
    const first = await db.connect()
    await first.query('begin')
    expect(await value(first, `select pgtally.reset_keys($1, array['a', 'b', 'a'])::int`, [counter.name])).toBe(1)
    const second = await db.connect()
    const backend = await pid(second)
    const resetting = value<number>(second, `select pgtally.reset_keys($1, array['a'])::int`, [counter.name])
    await blocked(db, backend)
    // Adding and applying do not wait for them.
    await counter.add(db.pool, 'a', 7)
    await apply(db.pool, counter.name)
    await first.query('commit')
    // The second has its own instant, which is later.
    expect(await resetting).toBe(1)
    expect(await count(place, 'a')).toBe(0)
    await Promise.all(Array.from({ length: 5 }, () => counter.reset('a')))
    await settle(place)
    expect(await counter.get('a')).toBe(0)
  })

  test('one that is rolled back has done nothing', async () => {
    const place = await createPlace(kind)
    await place.counter.add(db.pool, 'a', 5)
    const client = await db.connect()
    await client.query('begin')
    await value(client, `select pgtally.reset_keys($1, array['a'])`, [place.counter.name])
    expect((await place.counter.get('a', { fresh: true, executor: client })).count).toBe(0)
    await client.query('rollback')
    await settle(place)
    expect(await place.counter.get('a')).toBe(5)
  })

  test('of all keys, wherever their counts are', async () => {
    const place = await createPlace(kind)
    const { counter } = place
    await counter.add(db.pool, 'a', -4)
    await settle(place)
    await counter.add(db.pool, 'c', 2 ** 40)
    await counter.add(db.pool, 'nowhere', 9)
    await counter.resetAll()
    const expected = new Map([['a', 0], ['b', 0], ['c', 0], ['nowhere', 0]])
    const counts = await counter.getMany([...expected.keys()], { fresh: true })
    expect(new Map([...counts].map(([key, fresh]) => [key, fresh.count]))).toEqual(expected)
    await settle(place)
    expect(await counter.getMany([...expected.keys()])).toEqual(expected)
    // Once more, when there is nothing to take back.
    await counter.resetAll()
    expect(await value(db.pool, `select count(*)::int from ${place.carry}`)).toBe(0)
  })
})

test('a key that was never counted, and odd ones', async () => {
  const place = await createPlace('own')
  for (const key of ['none', '', 'NULL', '{a,b}', `o'clock`, '%s']) {
    await place.counter.reset(key)
    await place.counter.add(db.pool, key, 3)
    await place.counter.reset(key)
    expect(await count(place, key)).toBe(0)
  }
  await settle(place)
  expect(await value(db.pool, `select count(*)::int from ${place.table} where ${place.column} <> 0`)).toBe(0)
})

test('all of thousands of keys, in several ranges, each a transaction of its own', async () => {
  const place = await createPlace('own')
  const { counter } = place
  await db.pool.query(`select pgtally.add_event($1, 'page ' || n, n) from generate_series(1, 3000) n`, [counter.name])
  await settle(place)
  await db.pool.query(`select pgtally.add_event($1, 'page ' || n, 1) from generate_series(2500, 3500) n`, [counter.name])
  await counter.resetAll()
  expect(await value(db.pool, `select array[count(distinct xmin::text) > 1, count(distinct key) = 3500, count(*) = 3500] from ${place.carry}`)).toEqual([true, true, true])
  await counter.add(db.pool, 'page 1', 8)
  await settle(place)
  expect((await db.pool.query(`select key, value::int from ${place.table} where value <> 0`)).rows).toEqual([{ key: 'page 1', value: 8 }])
})

test('a constraint of the target that forbids counts below 0 is met when all is applied', async () => {
  const place = await createPlace('user')
  const { counter } = place
  await db.pool.query(`alter table ${place.table} add check (views >= 0)`)
  await counter.add(db.pool, 'a', 5)
  await settle(place)
  await counter.add(db.pool, 'a', 2)
  await counter.reset('a')
  // What is taken back is more than what is stored, and has to go with what is pending.
  expect(await counter.get('a', { fresh: true })).toEqual({ count: 0, stored: 5, carried: -7, pending: 2 })
  await expect(value(db.pool, 'select pgtally.apply_carried($1)', [counter.name])).rejects.toMatchObject({ code: '23514' })
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await counter.get('a')).toBe(0)
  expect(await statusOf(db.pool, counter.name)).toMatchObject({ carried_keys: '0', pending_events: '0', last_error: null })
})

test('a counter that counts rows cannot be reset, nor one that follows its queue; one that follows events can, by itself', async () => {
  const blog = await createBlog(db, tally)
  await tally.createCounter('follower of rows', { queue: blog.counter })
  await like(db.pool, blog, 1)
  for (const name of [blog.counter, 'follower of rows']) {
    const refused = { name: 'PgtallyError', code: 'NOT_APPLICABLE', message: expect.stringMatching(new RegExp(`"${name}".*${blog.likes}.*reconcile`, 's')) }
    await expect(tally.counter(name).reset(1)).rejects.toMatchObject(refused)
    await expect(tally.counter(name).resetAll()).rejects.toMatchObject(refused)
    expect(await tally.counter(name).get(1, { fresh: true })).toMatchObject({ count: 1, carried: 0 })
  }
  const place = await createPlace('own')
  const follower = `follower of ${place.counter.name}`
  await tally.createCounter(follower, { queue: place.counter.name })
  await place.counter.add(db.pool, 'a', 5)
  await tally.counter(follower).reset('a')
  expect([await count(place, 'a'), (await tally.counter(follower).get('a', { fresh: true })).count]).toEqual([5, 0])
  await settle(place)
  await applyAll(db.pool, follower)
  await value(db.pool, 'select pgtally.apply_carried($1)', [follower])
  expect([await place.counter.get('a'), await tally.counter(follower).get('a')]).toEqual([5, 0])
})

test('a counter or key that there is not, and another isolation than READ COMMITTED', async () => {
  await tally.createCounter('numbered', { keyType: 'bigint' })
  const counter = tally.counter('numbered')
  await expect(tally.counter('nobody').reset('a')).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('"nobody"') })
  await expect(tally.counter('nobody').resetAll()).rejects.toMatchObject({ code: 'NOT_FOUND' })
  await expect(counter.reset('x')).rejects.toMatchObject({ code: '22P02' })
  await expect(counter.reset(undefined as unknown as string)).rejects.toMatchObject({ name: 'PgtallyError' })
  await expect(counter.reset(1.5)).rejects.toMatchObject({ name: 'PgtallyError' })
  const client = await db.connect()
  await client.query('begin isolation level repeatable read')
  expect(await outcome(client.query(`select pgtally.reset_keys('numbered', array['1'])`))).toMatchObject({ code: 'TL004' })
})

const seed = Math.floor(Math.random() * 2 ** 31)

test.each(['own', 'user'] as const)(`at every instant the count is all that was added less all that was taken back: %s (seed ${seed})`, async (kind) => {
  const place = await createPlace(kind, 1000)
  const { counter } = place
  const keys: [string, ...string[]] = ['a', 'b', 'c']
  const log = `public.log_${places}`
  // What a reset takes back is a row in the carry table, beside those of workers.
  await db.pool.query(`
    create table ${log} (key text not null, delta bigint not null, is_reset boolean not null);
    create function ${log}() returns trigger language plpgsql as $$
    begin
      insert into ${log} values (new.key, new.delta, true);
      return null;
    end $$;
    create trigger log after insert on ${place.carry} for each row when (current_setting('application_name') = 'resetter') execute function ${log}()`)
  const resetters = new pg.Pool({ connectionString: db.connectionString, max: 3, application_name: 'resetter' })
  const resetting = createTally({ pool: resetters }).counter<string>(counter.name)
  const random = new Random(seed)
  const seen = { adds: 0, instants: 0, carried: 0 }

  async function add(client: pg.Client, own: Random): Promise<void> {
    await client.query('begin')
    for (let i = own.upTo(3); i > 0; i--) {
      const [key, delta] = [own.pick(keys), own.upTo(20) - 5]
      await counter.add(client, key, delta)
      await client.query(`insert into ${log} values ($1, $2, false)`, [key, delta])
      if (own.next() < 0.05) await sleep(own.upTo(200))
    }
    await client.query(own.next() < 0.1 ? 'rollback' : 'commit')
    seen.adds++
  }
  async function lock(client: pg.Client, own: Random): Promise<void> {
    await client.query('begin')
    await client.query(`select from ${place.table} where ${place.key} = $1 for no key update`, [own.pick(keys)])
    await sleep(own.upTo(100))
    await client.query('commit')
  }
  async function compare(client: pg.Client): Promise<void> {
    const { rows } = await client.query<{ carried: boolean; wrong: boolean }>(
      `select carried <> 0 as carried, stored + carried + pending <> (select coalesce(sum(delta), 0) from ${log} where key = f.key) as wrong
      from pgtally.get_fresh_counts($1, $2) f`,
      [counter.name, keys],
    )
    expect(rows.filter(({ wrong }) => wrong)).toEqual([])
    seen.instants++
    if (rows.some(({ carried }) => carried)) seen.carried++
  }
  const resetSome = (_: unknown, own: Random) => (own.next() < 0.5 ? resetting.reset(own.pick(keys)) : resetting.resetAll())

  const finished = new AbortController()
  async function until(work: (client: pg.Client, own: Random) => Promise<unknown>, own: Random): Promise<void> {
    const client = await db.connect()
    while (!finished.signal.aborted) {
      await work(client, own)
      await sleep(own.upTo(10))
    }
  }
  const resets = () => value<number>(db.pool, `select count(*)::int from ${log} where is_reset`)
  await using worker = tally.worker({ pollIntervalMs: 5 })
  await using second = tally.worker({ pollIntervalMs: 20, maxBatchEvents: 10 })
  const background = Promise.all([add, add, add, lock, compare, resetSome, resetSome].map((work) => until(work, random.fork())))
  const enough = async () => seen.adds >= 300 && seen.instants >= 200 && seen.carried >= 30 && (await resets()) >= 100
  try {
    await Promise.race([waitFor(enough, { what: 'enough of everything' }), background])
  } finally {
    finished.abort()
    await Promise.allSettled([background])
  }
  await background
  // Nothing is added any more, though not all is stored yet: so now all of it can be taken back.
  await resetting.resetAll()
  for (const key of keys) expect(await count(place, key)).toBe(0)
  await compare(await db.connect())
  await counter.add(db.pool, 'b', 3)
  await db.pool.query(`insert into ${log} values ('b', 3, false)`)
  await resetters.end()
  await waitFor(async () => (await statusOf(db.pool, counter.name)).pending_events === '0' && (await statusOf(db.pool, counter.name)).carried_keys === '0', { what: 'all to be stored' })
  await Promise.all([worker.stop(), second.stop()])
  const { rows } = await db.pool.query<{ key: string; sum: string }>(`select key, sum(delta)::text from ${log} group by key`)
  expect(new Map(rows.map(({ key, sum }) => [key, Number(sum)]))).toEqual(new Map([['a', 0], ['b', 3], ['c', 0]]))
  expect(await counter.getMany(keys)).toEqual(new Map([['a', 0], ['b', 3], ['c', 0]]))
})
