import { beforeAll, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, createBlog, installed, like, stored, value, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const everySecond = { rest: { rotationPeriodMs: 1000 } }
const rotate = ({ counter }: Blog) => value<number>(db.pool, 'select pgtally.rotate($1)', [counter])
const eventTable = async ({ counter }: Blog) => `pgtally.event_${await value<number>(db.pool, 'select pgtally.queue_id($1)', [counter])}`
const slotBytes = ({ counter }: Blog) => value<string[]>(db.pool, 'select slot_bytes from pgtally.queue_status() where name = $1', [counter]).then((sizes) => sizes.map(Number))
const currentSlot = ({ counter }: Blog) => value<number>(db.pool, 'select current_slot from pgtally.queue_status() where name = $1', [counter])

/** Waits until writers use another slot than now. */
async function nextSlot(blog: Blog): Promise<void> {
  const slot = await currentSlot(blog)
  await waitFor(async () => (await currentSlot(blog)) !== slot, { what: 'the next slot' })
}

/** Lets all finished batches be as old as they have to be. */
async function age({ counter }: Blog): Promise<void> {
  await db.pool.query(
    `update pgtally.batch b set finished_at = finished_at - interval '1 hour' from pgtally.consumer c
    where c.consumer_id = b.consumer_id and c.queue_id = pgtally.queue_id($1)`,
    [counter],
  )
}

test('with nothing but a worker, tables and positions do not grow', async () => {
  const blog = await createBlog(db, tally, everySecond)
  const table = await eventTable(blog)
  const written = new Set<number>()
  let truncations = 0
  await using worker = tally.worker({ pollIntervalMs: 20 })
  const heads = () => value<string>(db.pool, 'select array_agg(pg_relation_filenode(inhrelid) order by inhrelid)::text from pg_inherits where inhparent = $1::regclass', [table])
  let before = await heads()
  const slots: number[] = []
  while (truncations < 3) {
    await like(db.pool, blog, 1, 1)
    written.add(await currentSlot(blog))
    if (slots.at(-1) !== (await currentSlot(blog))) slots.push(await currentSlot(blog))
    const now = await heads()
    if (now !== before) truncations++
    before = now
    expect(await violations(db, blog.counter)).toEqual([])
  }
  expect(written.size).toBe(3)
  const likes = await value<number>(db.pool, `select count(*)::int from ${blog.likes}`)
  expect(await value(db.pool, `select count(*)::int from ${table}`)).toBeLessThan(likes)
  await tally.drain()
  expect(await stored(db.pool, blog)).toEqual({ 1: likes })
  // And with no more likes, all of it goes but for what is in the current slot.
  await waitFor(async () => (await value<number>(db.pool, `select count(*)::int from ${table}`)) === 0, { what: 'empty slots' })
  const positions = () => value<number>(db.pool, `select count(*)::int from pgtally.batch join pgtally.counter on consumer_id = counter_id where name = $1`, [blog.counter])
  await waitFor(async () => (await positions()) === 1, { what: 'one position' })
  await worker.stop()
})

test('an event that is not applied yet keeps its slot, of whichever consumer', async () => {
  const blog = await createBlog(db, tally, everySecond)
  await db.pool.query(`select pgtally.register_consumer($1, 'slow')`, [blog.counter])
  await like(db.pool, blog, 1)
  await nextSlot(blog)
  await age(blog)
  expect(await rotate(blog)).toBe(0)
  await applyAll(db.pool, blog.counter)
  await age(blog)
  expect(await rotate(blog)).toBe(0)
  const batch = await value<string>(db.pool, `select pgtally.next_batch($1, 'slow')`, [blog.counter])
  await age(blog)
  expect(await rotate(blog)).toBe(0)
  expect((await db.pool.query('select ev_key from pgtally.get_batch_events($1)', [batch])).rows).toEqual([{ ev_key: '1' }])
  await db.pool.query('select pgtally.finish_batch($1)', [batch])
  // Not at once: an older snapshot may still look for it.
  const emptied = await rotate(blog)
  const stillYoung = await value<boolean>(db.pool, `select finished_at > clock_timestamp() - interval '1 second' from pgtally.batch where batch_id = $1`, [batch])
  expect(stillYoung ? emptied : 0).toBe(0)
  await age(blog)
  await nextSlot(blog)
  expect(await rotate(blog)).toBe(1)
  // What is left is the first page of its index, and that of its TOAST table.
  for (const bytes of await slotBytes(blog)) expect(bytes).toBeLessThanOrEqual(2 * 8192)
})

test('an uncommitted or prepared writer, and a reader, keep a slot without making anyone wait', async () => {
  const blog = await createBlog(db, tally, everySecond)
  const table = await eventTable(blog)
  await like(db.pool, blog, 1)
  await applyAll(db.pool, blog.counter)
  const slot = await value<number>(db.pool, `select ev_slot from ${table} limit 1`)
  const writer = await db.connect()
  await writer.query('begin')
  await writer.query(`insert into ${table}_${slot} (ev_slot, ev_key, ev_delta) values (${slot}, 2, 1)`)
  await waitFor(async () => (await currentSlot(blog)) !== slot, { what: 'the next slot' })
  await age(blog)
  expect(await rotate(blog)).toBe(0)
  await writer.query(`prepare transaction '${blog.counter}'`)
  expect(await rotate(blog)).toBe(0)
  await db.pool.query(`rollback prepared '${blog.counter}'`)
  const reader = await db.connect()
  await reader.query(`begin; lock table ${table} in access share mode`)
  expect(await rotate(blog)).toBe(0)
  await reader.query('rollback')
  await waitFor(async () => (await rotate(blog)) === 1, { what: 'the slot to be emptied' })
  expect(await violations(db, blog.counter)).toEqual([])
})

test('a consumer that is being registered keeps what may become its own', async () => {
  const blog = await createBlog(db, tally, everySecond)
  const open = await db.connect()
  await open.query('begin')
  await open.query(`select pgtally.register_consumer($1, 'late')`, [blog.counter])
  await like(db.pool, blog, 1)
  await applyAll(db.pool, blog.counter)
  await nextSlot(blog)
  await age(blog)
  expect(await rotate(blog)).toBe(0)
  await open.query('commit')
  expect(await rotate(blog)).toBe(0)
  const batch = await value<string>(db.pool, `select pgtally.next_batch($1, 'late')`, [blog.counter])
  expect((await db.pool.query('select ev_key from pgtally.get_batch_events($1)', [batch])).rows).toEqual([{ ev_key: '1' }])
})

test('several at once empty each slot once', async () => {
  const blog = await createBlog(db, tally, everySecond)
  await like(db.pool, blog, 1)
  await applyAll(db.pool, blog.counter)
  await nextSlot(blog)
  await age(blog)
  const emptied = await Promise.all(Array.from({ length: 10 }, () => rotate(blog)))
  expect(emptied.reduce((sum, slots) => sum + slots, 0)).toBe(1)
})

test('nothing is lost with rotations, writers and batches all at once', async () => {
  const blog = await createBlog(db, tally, everySecond)
  const finished = new AbortController()
  const until = async (work: () => Promise<unknown>) => {
    while (!finished.signal.aborted) await work()
  }
  let emptied = 0
  const background = Promise.all([
    ...Array.from({ length: 3 }, (_, n) => until(() => like(db.pool, blog, n + 1))),
    until(async () => {
      const writer = await db.connect()
      await writer.query('begin isolation level repeatable read')
      await like(writer, blog, 4)
      await nextSlot(blog)
      await like(writer, blog, 4)
      await writer.query('commit')
      await writer.end()
    }),
    until(() => applyAll(db.pool, blog.counter)),
    until(() => age(blog)),
    ...Array.from({ length: 2 }, () => until(async () => (emptied += await rotate(blog)))),
    until(async () => expect(await violations(db, blog.counter)).toEqual([])),
  ])
  await Promise.race([waitFor(async () => emptied >= 2, { what: 'two emptied slots' }), background]).finally(() => finished.abort())
  await background
  await applyAll(db.pool, blog.counter)
  expect(await violations(db, blog.counter)).toEqual([])
})
