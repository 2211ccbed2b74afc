import { beforeAll, expect, test } from 'vitest'

import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, column, installed, outcome, pid, value, type Session } from './support/fixtures.ts'
import { beside } from './support/storm.ts'
import { auditRows, correctAll, createTimedBlog, settle, soon, timeViolations, withinOne, type TimedBlog } from './support/times.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createTestDatabase()
  await installed(db)
  return db.drop
})

const hours = [{ width: '1 hour', retain: '80 hours' }, { width: '1 day', retain: 'forever' }]
// Kept in slots of 21 hours: the one of now, four before it and the next; what is further ahead is in the slot 6.
const slotHours = 21

const counterId = ({ counter }: TimedBlog) => value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])
const expire = (session: Session, { counter }: TimedBlog) => value<number | null>(session, 'select pgtally.expire_buckets($1)', [counter])
const keptSince = (blog: TimedBlog) => value<Date>(db.pool, `select since from pgtally.bucket_status() where counter = $1 order by width limit 1`, [blog.counter])

/** A like of the first post in each hour from one to the other, counted from now. Whole hours, as one that is about five minutes ahead may be of the future now and not when it is compared. */
async function likeHours({ likes, counter }: TimedBlog, from: number, to: number): Promise<void> {
  await db.pool.query(`insert into ${likes} (post_id, at) select 1, now() + n * interval '1 hour' from generate_series($1::int, $2::int) n`, [from, to])
  await applyAll(db.pool, counter)
}

/** How many rows each slot of the buckets of hours has. */
async function slots(blog: TimedBlog): Promise<Record<string, number>> {
  const { rows } = await db.pool.query<{ slot: string; rows: number }>(`select slot, count(*)::int as rows from pgtally.bucket_${await counterId(blog)}_1 group by slot`)
  return Object.fromEntries(rows.map(({ slot, rows: count }) => [slot, count]))
}

/** As if so many slots had passed since: what there is has come to be that much older. Only where no events are pending. */
async function age(blog: TimedBlog, passed: number): Promise<void> {
  const id = await counterId(blog)
  const by = `interval '${passed * slotHours} hours'`
  const rows = await value<string>(db.pool, `with gone as (delete from pgtally.bucket_${id}_1 returning start - ${by} as start, key, count, slot) select coalesce(json_agg(gone), '[]')::text from gone`)
  await db.pool.query(`update pgtally.bucket set kept_since = kept_since - ${by} where counter_id = $1 and slot_span is not null`, [id])
  await db.pool.query(
    `insert into pgtally.bucket_${id}_1 (start, key, count, slot)
    select r.start, r.key, r.count, case when r.slot = 6 then 6 else mod(floor(extract(epoch from r.start) / extract(epoch from b.slot_span))::bigint, 6) end
    from json_to_recordset($1) r(start timestamptz, key bigint, count bigint, slot integer), pgtally.bucket b where b.counter_id = $2 and b.number = 1`,
    [rows, id],
  )
  await db.pool.query(`update pgtally.recent_${id} set start_1 = start_1 - ${by}`)
  await db.pool.query(`set session_replication_role = replica; update ${blog.likes} set at = at - ${by}; reset session_replication_role`)
  // The days and the scores have no part in this.
  await db.pool.query(`delete from pgtally.bucket_${id}_2; update pgtally.recent_${id} set count_2 = 0, score_1 = 0, score_2 = 0`)
  await correctAll(db.pool, blog.counter)
}

async function wrong({ counter }: TimedBlog): Promise<unknown[]> {
  await settle(db.pool, counter)
  return [...(await timeViolations(db.pool, counter)), ...(await auditRows(db.pool, counter))]
}

test('what need not be kept any more is emptied slot by slot, and everything that is kept stays', async () => {
  const blog = await createTimedBlog(db, { buckets: hours })
  expect(await expire(db.pool, blog)).toBe(0)
  await likeHours(blog, -104, 60)
  expect((await slots(blog))['6']).toBeGreaterThan(5)
  for (const passed of [1, 2]) {
    await age(blog, passed)
    const rows = Object.values(await slots(blog)).reduce((sum, n) => sum + n, 0)
    expect(await wrong(blog)).toEqual([])
    expect(await expire(db.pool, blog)).toBe(passed)
    expect(await expire(db.pool, blog)).toBe(0)
    expect(await wrong(blog)).toEqual([])
    expect(await value<boolean>(db.pool, `select bool_and(start >= kept_since) from pgtally.bucket_${await counterId(blog)}_1, pgtally.bucket where counter_id = $1 and number = 1`, [await counterId(blog)])).toBe(true)
    expect(Object.values(await slots(blog)).reduce((sum, n) => sum + n, 0)).toBeLessThan(rows)
    // Into all that is kept, and what is not kept any more is late.
    await likeHours(blog, -120, 90)
    expect(await wrong(blog)).toEqual([])
  }
  expect(await value<number>(db.pool, `select late_events::int from pgtally.counter_status() where name = $1`, [blog.counter])).toBeGreaterThan(9)
})

test('after a long pause all slots are emptied at once, but for what was far ahead and has come near', async () => {
  const blog = await createTimedBlog(db, { buckets: hours })
  await likeHours(blog, -70, 600)
  for (const passed of [6, 9, 25]) {
    await age(blog, passed)
    // A worker counts before anybody expires: what is new is beyond the ring.
    await likeHours(blog, -9, 9)
    expect(await wrong(blog)).toEqual([])
    expect(await expire(db.pool, blog)).toBe(6)
    expect(await value(db.pool, `select min(start) >= (select kept_since from pgtally.bucket where counter_id = $1 and number = 1) from pgtally.bucket_${await counterId(blog)}_1`, [await counterId(blog)])).toBe(true)
    expect(await wrong(blog)).toEqual([])
    await likeHours(blog, -100, 120)
    expect(await wrong(blog)).toEqual([])
  }
})

test('of times before 1970, which are kept where the retention is that long', async () => {
  const blog = await createTimedBlog(db, { buckets: [{ width: '1 day', retain: '80 years' }] })
  await db.pool.query(`insert into ${blog.likes} (post_id, at) select 1, timestamptz '1900-01-01 12:00+00' + n * interval '1 year' from generate_series(0, 125) n`)
  expect(await wrong(blog)).toEqual([])
  await db.pool.query(`delete from ${blog.likes} where id % 3 = 0`)
  expect(await wrong(blog)).toEqual([])
  await db.pool.query(`update pgtally.bucket set kept_since = kept_since - slot_span where counter_id = $1`, [await counterId(blog)])
  expect(await expire(db.pool, blog)).toBe(1)
})

test('emptying waits for nobody: not for a reader, not for a batch in hand; and has no batch wait', async () => {
  const blog = await createTimedBlog(db, { buckets: hours })
  await likeHours(blog, -70, 15)
  await age(blog, 1)
  const reader = await db.connect()
  await reader.query('begin')
  expect(await value(reader, `select count(*)::int from pgtally.series($1, '1', '1 hour', now() - interval '400 hours')`, [blog.counter])).toBeGreaterThan(80)
  expect(await expire(db.pool, blog)).toBe(0)
  await reader.query('commit')
  const worker = await db.connect()
  await worker.query('begin')
  await db.pool.query(`insert into ${blog.likes} (post_id, at) values (1, now())`)
  await applyAll(worker, blog.counter)
  expect(await expire(db.pool, blog)).toBeNull()
  await worker.query('commit')
  const first = await db.connect()
  await first.query('begin')
  expect(await expire(first, blog)).toBe(1)
  // Somebody else's batch, and another who expires.
  expect(await value(db.pool, 'select busy from pgtally.apply_batch($1)', [blog.counter])).toBe(true)
  expect(await expire(db.pool, blog)).toBeNull()
  // Not as late as to be half done.
  await first.query('rollback')
  expect(await wrong(blog)).toEqual([])
  expect(await expire(db.pool, blog)).toBe(1)
  expect(await outcome(db.pool.query('begin isolation level repeatable read; select pgtally.expire_buckets($1)'.replace('$1', `'${blog.counter}'`)))).toMatchObject({ code: 'TL004' })
  expect(await outcome(db.pool.query(`select pgtally.expire_buckets('nobody')`))).toMatchObject({ code: 'TL001' })
})

test('who reads with a snapshot from before a slot was emptied is told what is kept, and never that there was nothing', () => withinOne(db.pool, '1 hour', async () => {
  const blog = await createTimedBlog(db, { buckets: hours })
  await likeHours(blog, -104, 0)
  const kept = await keptSince(blog)
  // A like each hour: so no hour of a chart may be empty.
  const chart = (session: Session) => column<number>(session, `select distinct count::int from pgtally.series($1, '1', '1 hour', now() - interval '400 hours')`, [blog.counter])
  await db.pool.query(`update pgtally.bucket set kept_since = kept_since - slot_span where counter_id = $1 and slot_span is not null`, [await counterId(blog)])
  // As it would be found half: this one is not in a slot yet.
  await db.pool.query(`insert into ${blog.likes} (post_id, at) select 2, $1::timestamptz - interval '1 hour' from generate_series(1, 20)`, [kept])
  await applyAll(db.pool, blog.counter)
  const old = await db.connect()
  await old.query('begin isolation level repeatable read; select 1')
  const before = await value<string>(old, `select kept_since::text from pgtally.bucket where counter_id = $1 and number = 1`, [await counterId(blog)])
  expect(await expire(db.pool, blog)).toBe(1)
  expect(await value(old, `select kept_since::text from pgtally.bucket where counter_id = $1 and number = 1`, [await counterId(blog)])).toBe(before)
  expect(await chart(db.pool)).toEqual([1])
  expect(await chart(old)).toEqual([1])
  expect(await value(old, `select min(start) >= $1 from pgtally.series($2, '1', '1 hour', now() - interval '400 hours')`, [kept, blog.counter])).toBe(true)
  expect(await value(old, `select min(start) >= $1 from pgtally.buckets_${await counterId(blog)}_1`, [kept])).toBe(true)
  // A window that begins before is of the days, or refused.
  await db.pool.query(`delete from pgtally.bucket where counter_id = $1 and number = 2`, [await counterId(blog)])
  expect(await outcome(db.pool.query(`select * from pgtally.top($1, 10, $2::timestamptz - interval '1 second')`, [blog.counter, kept]))).toMatchObject({ code: 'TL009' })
  expect(await outcome(old.query(`select * from pgtally.top($1, 10, $2::timestamptz)`, [blog.counter, kept]))).toBe('done')
}))

test('a list that waited while its slots were emptied is refused, and a chart begins later', async () => {
  const blog = await createTimedBlog(db, { buckets: [{ width: '1 second', retain: '4 seconds' }] })
  const id = await counterId(blog)
  const holder = await db.connect()
  const clients = [await db.connect(), await db.connect()] as const
  const pids = [await pid(clients[0]), await pid(clients[1])]
  // As long as it takes until the reader has looked up what is kept and waits for the buckets.
  await holder.query(`begin; lock table pgtally.bucket_${id}_1 in access exclusive mode`)
  const from = await keptSince(blog)
  const top = outcome(clients[0].query(`select * from pgtally.top($1, 10, $2::timestamptz)`, [blog.counter, from]))
  const series = clients[1].query<{ start: Date }>(`select start from pgtally.series($1, '1', '1 second', $2::timestamptz, $2::timestamptz + interval '2 seconds')`, [blog.counter, from])
  for (const backend of pids) await blocked(db, backend)
  await waitFor(async () => value<boolean>(db.pool, `select since > $2::timestamptz + interval '2 seconds' from pgtally.bucket_status() where counter = $1`, [blog.counter, from]), { what: 'buckets to come to their end' })
  await holder.query('commit')
  expect(await top).toMatchObject({ code: 'TL009' })
  expect((await series).rows).toEqual([])
})

test('seconds that are kept for seconds: charts, lists and audits beside writers, batches and emptying are never wrong', async () => {
  const blog = await createTimedBlog(db, { buckets: [{ width: '1 second', retain: '4 seconds' }, { width: '1 minute', retain: '1 hour' }], halfLives: ['1 minute'] })
  const { likes, counter } = blog
  let emptied = 0
  {
    await using others = new AsyncDisposableStack()
    others.use(beside(() => db.pool.query(`insert into ${likes} (post_id, at) select 1, now() + n * interval '1 second' from generate_series(-9, 9) n`)))
    others.use(beside(() => db.pool.query('select pgtally.apply_batch($1)', [counter])))
    others.use(beside(async () => (emptied += (await expire(db.pool, blog)) ?? 0)))
    await using auditor = beside(async () => expect(await auditRows(db.pool, counter)).toEqual([]))
    await using reader = beside(async () => {
      // Whatever is kept and was ever written has been written for every second: so no second between two is empty.
      const counts = await column<number>(db.pool, `select count::int from pgtally.series($1, '1', '1 second', now() - interval '8 seconds', now() - interval '1 second')`, [counter])
      expect(counts.join()).not.toMatch(/[1-9][0-9]*,0(,|$)/)
      await outcome(db.pool.query(`select * from pgtally.top($1, 10, now() - interval '4 seconds')`, [counter])).then((ended) => expect(ended).toBe('done'))
    })
    await waitFor(async () => (await value<number>(db.pool, `select late_events::int from pgtally.counter_status() where name = $1`, [counter])) > 0 && emptied > 3 && auditor.rounds > 5 && reader.rounds > 20, { what: 'slots that were emptied meanwhile', timeoutMs: 20_000 })
  }
  await db.pool.query(`delete from ${likes} where at > now() - interval '1 second'`)
  // Once more where a second comes to its end between two parts of the comparison.
  expect(await soon(async () => wrong(blog))).toEqual([])
})
