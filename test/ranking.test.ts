import { beforeAll, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, column, installed, pid, value } from './support/fixtures.ts'
import { beside } from './support/storm.ts'
import { auditRows, correctAll, createCounterBySql, createTimedBlog, settle, timeViolations, type TimedBlog } from './support/times.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const ranked = { buckets: null, halfLives: null, rest: { source_time: null } }
const top = (counter: string, limit = 10, scope: unknown = null) =>
  db.pool.query<{ key: string; count: number }>('select key, count::int from pgtally.top($1, $2, null, null, $3)', [counter, limit, scope === null ? null : JSON.stringify(scope)]).then(({ rows }) => rows.map(({ key, count }) => [key, count]))
/** As the likes say, which are all applied. */
const truth = (blog: TimedBlog, limit = 10, condition = 'true') =>
  db.pool.query<{ key: string; count: number }>(
    `select post_id::text as key, count(*)::int as count from ${blog.likes} l join ${blog.posts} p on p.id = l.post_id where ${condition} group by post_id order by 2 desc, l.post_id limit $1`, [limit],
  ).then(({ rows }) => rows.map(({ key, count }) => [key, count]))

/** Lists that are not what the likes say. */
async function wrong(blog: TimedBlog): Promise<unknown[]> {
  const violations: unknown[] = await timeViolations(db.pool, blog.counter)
  for (const limit of [1, 3, 10, 10_000]) {
    const [actual, expected] = [await top(blog.counter, limit), await truth(blog, limit)]
    if (JSON.stringify(actual) !== JSON.stringify(expected)) violations.push({ limit, actual, expected })
  }
  return violations
}

const keys = Array.from({ length: 400 }, (_, n) => String(n + 1))

test('the list is that of the stored counts, also of equal ones, through levels that are one count and levels that are many', async () => {
  const blog = await createTimedBlog(db, { ...ranked, keys })
  await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + n % 400 from generate_series(1, 800) n`)
  await applyAll(db.pool, blog.counter)
  expect(await wrong(blog)).toEqual([])
  // Many in one level above 63, of which only some are wanted.
  for (const [from, to, each] of [[1, 50, 100], [51, 60, 101], [61, 62, 102], [100, 140, 500], [141, 141, 2000], [300, 310, 61], [311, 320, 62]]) {
    await db.pool.query(`insert into ${blog.likes} (post_id) select p from generate_series($1::int, $2::int) p, generate_series(1, $3::int)`, [from, to, each])
  }
  await applyAll(db.pool, blog.counter)
  expect(await wrong(blog)).toEqual([])
  for (const limit of [2, 12, 40, 41, 42, 44, 55, 56, 110, 399]) expect(await top(blog.counter, limit)).toEqual(await truth(blog, limit))
  await db.pool.query(`delete from ${blog.likes} where post_id between 100 and 141 and id % 2 = 0; delete from ${blog.likes} where post_id in (1, 61, 141); update ${blog.posts} set category = id % 3`)
  await applyAll(db.pool, blog.counter)
  expect(await wrong(blog)).toEqual([])
  for (const limit of [1, 5, 100, 1000]) expect(await top(blog.counter, limit, { category: 2 })).toEqual(await truth(blog, limit, 'category = 2'))
  expect(await top(blog.counter, 10, { category: null })).toEqual([])
  expect(await top(blog.counter, 3, { category: '2', id: 2 })).toEqual(await truth(blog, 3, 'p.id = 2'))
})

test('through packed keys, locked rows, deleted posts, and posts that come later', async () => {
  const blog = await createTimedBlog(db, { ...ranked, keys })
  const { counter, posts, likes } = blog
  await db.pool.query(`alter table ${likes} add foreign key (post_id) references ${posts} on delete cascade`)
  await db.pool.query(`insert into ${likes} (post_id) select 1 + n % 400 from generate_series(1, 1300) n`)
  expect(await value(db.pool, 'select packed from pgtally.apply_batch($1, max_keys => 7)', [counter])).toBe(393)
  // What is put off is neither stored nor ranked, so they are the same.
  expect(await timeViolations(db.pool, counter)).toEqual([])
  await settle(db.pool, counter)
  expect(await wrong(blog)).toEqual([])

  const owner = await db.connect()
  await owner.query(`begin; update ${posts} set category = 9 where id in (5, 6, 7)`)
  await db.pool.query(`insert into ${likes} (post_id) select 5 + n % 4 from generate_series(1, 40) n`)
  expect(await value(db.pool, 'select carried from pgtally.apply_batch($1)', [counter])).toBe(3)
  expect(await timeViolations(db.pool, counter)).toEqual([])
  await owner.query('commit')
  expect(await value(db.pool, `select added from pgtally.wait_for_carried($1, '0')`, [counter])).toBe(true)
  expect(await timeViolations(db.pool, counter)).toEqual([])
  await settle(db.pool, counter)
  expect(await wrong(blog)).toEqual([])

  await db.pool.query(`delete from ${posts} where id in (5, 6, 20)`)
  // At once: nobody sees them in a list, and a list is as long as it shall be.
  expect((await top(counter, 10)).map(([key]) => key)).toHaveLength(10)
  expect((await top(counter, 10)).map(([key]) => key)).not.toContain('5')
  await db.pool.query(`insert into ${posts} (id) values (1001), (1002); insert into ${likes} (post_id) select 1002 from generate_series(1, 9)`)
  await settle(db.pool, counter)
  expect(await wrong(blog)).toEqual([])
  // Their rows of the ranking are gone, too.
  const table = `pgtally.rank_${await value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])}`
  expect(await column(db.pool, `select key::int from ${table} where key in (5, 6, 20)`)).toEqual([])
})

test('of posts that had counts before the counter, and of counts that a reconciliation corrects', async () => {
  const blog = await createTimedBlog(db, { ...ranked, keys })
  const name = `${blog.counter}_again`
  await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + n % 13 from generate_series(1, 200) n`)
  await settle(db.pool, blog.counter)
  await tally.dropCounter(blog.counter)
  await db.pool.query(`update ${blog.posts} set like_count = 50 where id = 3`)
  await createCounterBySql(db.pool, name, { source: `'${blog.likes}'`, source_key: `'post_id'`, target: `'${blog.posts}'`, target_key: `'id'`, target_column: `'like_count'`, ranking: 'true' })
  await db.pool.query(`insert into ${blog.likes} (post_id) select 1 from generate_series(1, 3)`)
  await applyAll(db.pool, name)
  await tally.counter(name).reconcile()
  await settle(db.pool, name)
  expect(await wrong({ ...blog, counter: name })).toEqual([])
  await db.pool.query(`update ${blog.posts} set like_count = like_count + 7 where id in (1, 9, 200)`)
  await tally.counter(name).reconcile()
  await settle(db.pool, name)
  expect(await wrong({ ...blog, counter: name })).toEqual([])
})

test('that is damaged is mended by a reconciliation, which waits for whoever is writing it', async () => {
  const blog = await createTimedBlog(db, { ...ranked, keyType: 'text', keys: ['a', `key 'b'`, 'c', 'd', 'E'] })
  const { counter, posts, likes } = blog
  await db.pool.query(`insert into ${likes} (post_id) select p from unnest('{a,b,c,d,E}'::text[]) with ordinality u(p, n), generate_series(1, 3 * n::int)`)
  await db.pool.query(`update ${likes} set post_id = 'key ''b''' where post_id = 'b'`)
  await settle(db.pool, counter)
  const table = `pgtally.rank_${await value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])}`
  await db.pool.query(`update ${table} set value = 100 where key in ('a', 'key ''b'''); delete from ${table} where key = 'c'; update ${table} set value = 0 where key = 'E'; insert into ${table} (key, value) values ('gone', 7)`)
  expect(await wrong(blog)).not.toEqual([])
  // Somebody adds to one of them without the counter's lock.
  const [owner, waiting, mender] = [await db.connect(), await db.connect(), await db.connect()]
  await owner.query(`begin; update ${posts} set category = 1 where id = 'a'`)
  await db.pool.query(`insert into ${likes} (post_id) values ('a')`)
  await applyAll(db.pool, counter)
  await owner.query('commit')
  await waiting.query('begin')
  expect(await value(waiting, `select added from pgtally.wait_for_carried($1, '0')`, [counter])).toBe(true)
  const backend = await pid(mender)
  const mending = correctAll(mender, counter)
  await blocked(db, backend)
  await waiting.query('commit')
  await mending
  await settle(db.pool, counter)
  expect(await wrong(blog)).toEqual([])
  expect(await column(db.pool, `select value::int from ${table} where key in ('gone', 'a')`)).toEqual([4])
})

test('of a table of pgtally\'s own, of keys of text, with counts at the ends of bigint', async () => {
  const name = 'pages'
  await createCounterBySql(db.pool, name, { key_type: `'text'`, ranking: 'true' })
  const add = (entries: [string, string][]) => db.pool.query('select pgtally.add_events($1, $2, $3)', [name, entries.map(([key]) => key), entries.map(([, delta]) => delta)])
  await add([['big', '9223372036854775800'], ['b', '70'], ['a', '70'], ['C', '70'], ['none', '0'], ['less', '-5'], ['smallest', '-9223372036854775000']])
  await applyAll(db.pool, name)
  const list = async () => (await db.pool.query<{ key: string; count: string }>('select * from pgtally.top($1)', [name])).rows.map(({ key, count }) => `${key} ${count}`)
  const equal = await column<string>(db.pool, `select k from unnest('{a,b,C}'::text[]) k order by k`)
  expect(await list()).toEqual(['big 9223372036854775800', ...equal.map((key) => `${key} 70`)])
  await add([['big', '-9223372036854775799'], ['less', '6'], ['a', '1']])
  await applyAll(db.pool, name)
  expect(await list()).toEqual(['a 71', ...equal.filter((key) => key !== 'a').map((key) => `${key} 70`), 'big 1', 'less 1'])
  await tally.counter(name).resetAll()
  await settle(db.pool, name)
  expect(await list()).toEqual([])
})

test('a window of time, by its edges, by its scope, and by the narrowest buckets that are kept for so long', async () => {
  const blog = await createTimedBlog(db, { buckets: [{ width: '1 minute', retain: '2 hours' }, { width: '1 hour', retain: 'forever' }] })
  const like = (post: number, at: string, count: number) => db.pool.query(`insert into ${blog.likes} (post_id, at) select $1, ${at} from generate_series(1, $2)`, [post, count])
  // One for all, as a minute may begin meanwhile.
  const base = await value<string>(db.pool, `select quote_literal(date_bin('1 minute', now(), '2000-01-01'))`)
  const minute = (n: number) => `(${base}::timestamptz + ${n} * interval '1 minute')`
  // On the edges and just beside them.
  await like(1, `${minute(-10)} - interval '1 microsecond'`, 50)
  await like(2, minute(-10), 5)
  await like(3, `${minute(-5)} - interval '1 microsecond'`, 5)
  await like(4, minute(-5), 60)
  await like(5, `${minute(-7)}`, 6)
  await like(6, `${minute(-7)}`, 3)
  await db.pool.query(`delete from ${blog.likes} where post_id = 6`)
  await like(7, minute(3), 70)
  await like(8, `now() - interval '100 days'`, 80)
  await db.pool.query(`update ${blog.posts} set category = 1 where id in (3, 4, 5)`)
  await applyAll(db.pool, blog.counter)
  const window = async (from: string, to: string, limit = 10, scope = 'null') =>
    (await db.pool.query<{ key: string; count: number }>(`select key, count::int from pgtally.top($1, $2, ${from}, ${to}, ${scope})`, [blog.counter, limit])).rows.map(({ key, count }) => [key, count])
  const inside = [['5', 6], ['2', 5], ['3', 5]]
  const at = minute(-10)
  expect(await window(at, `${at} + interval '5 minutes'`)).toEqual(inside)
  expect(await window(at, `${at} + interval '5 minutes'`, 2)).toEqual(inside.slice(0, 2))
  expect(await window(`${at} + interval '1 second'`, `${at} + interval '5 minutes'`)).toEqual([['5', 6], ['3', 5]])
  expect(await window(at, `${at} + interval '5 minutes 1 second'`)).toEqual([['4', 60], ...inside])
  expect(await window(at, `${at} + interval '5 minutes 1 second'`, 10, `'{"category": 1}'`)).toEqual([['4', 60], ['5', 6], ['3', 5]])
  // Up to now; what is ahead is not in it, unless it is asked for.
  expect(await window(at, 'null')).toEqual([['4', 60], ...inside])
  expect((await window(at, `${at} + interval '20 minutes'`))[0]).toEqual(['7', 70])
  // Minutes are not kept for so long.
  expect(await window(`date_bin('1 hour', now(), '2000-01-01') - interval '120 days'`, `now() - interval '99 days'`)).toEqual([['8', 80]])
  // Nor does an hour begin in those.
  await expect(window(`date_bin('1 hour', ${base}, '2000-01-01') - interval '200 minutes'`, `date_bin('1 hour', ${base}, '2000-01-01') - interval '198 minutes'`)).rejects.toMatchObject({ code: 'TL009' })
  expect(await window(`date_bin('1 hour', ${minute(-180)}, '2000-01-01')`, minute(-180 + 1))).toEqual([])
  expect(await auditRows(db.pool, blog.counter)).toEqual([])
})

test('while writers, several workers, a reconciliation and people who lock and delete posts go on', async () => {
  const blog = await createTimedBlog(db, { keys: keys.slice(0, 60), halfLives: ['1 hour'] })
  const { counter, posts, likes } = blog
  // "Try again", as a worker does (add_deltas).
  const work = (call: string) =>
    beside(() =>
      db.pool.query(`select pgtally.${call.replace('NAME', `'${counter}'`)}`).catch((error: { code?: string }) => {
        if (error.code !== '55P03') throw error
      }),
    )
  {
    await using others = new AsyncDisposableStack()
    others.use(beside(() => db.pool.query(`delete from ${likes} where id in (select id from ${likes} where random() < 0.02 for update skip locked)`)))
    others.use(beside(() => db.pool.query(`with one as (update ${posts} set category = category + 1 where id = 1 + floor(random() * 60) returning pg_sleep(0.02)) select from one`)))
    others.use(beside(() => db.pool.query(`with gone as (delete from ${posts} where id = (select max(id) from ${posts} where id > 30) returning id, pg_sleep(0.05)) delete from ${likes} where post_id in (select id from gone)`)))
    others.use(work('apply_batch(NAME, max_keys => 20)'))
    others.use(work('apply_packed(NAME, 10)'))
    others.use(work('apply_carried(NAME)'))
    others.use(work(`wait_for_carried(NAME, '0')`))
    await using writer = beside(() => db.pool.query(`insert into ${likes} (post_id, at) select 1 + floor(random() * 60), now() - random() * interval '3 hours' from generate_series(1, 40)`))
    await using reconciler = beside(() => correctAll(db.pool, counter))
    await using checker = beside(async () => {
      expect((await timeViolations(db.pool, counter)).filter(({ part }) => part === 'ranking' || part === 'top')).toEqual([])
      expect(await auditRows(db.pool, counter)).toEqual([])
    })
    await waitFor(async () => writer.rounds > 60 && reconciler.rounds > 5 && checker.rounds > 10, { what: 'work beside work' })
  }
  await settle(db.pool, counter)
  await settle(db.pool, counter)
  expect(await timeViolations(db.pool, counter)).toEqual([])
  expect(await auditRows(db.pool, counter)).toEqual([])
})
