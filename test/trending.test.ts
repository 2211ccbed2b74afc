import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, column, installed, outcome, value, type Session } from './support/fixtures.ts'
import { auditRows, createCounterBySql, createTimedBlog, settle, timeViolations, withinOne, type TimedBlog } from './support/times.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** A like of each of these posts, so long ago. */
async function likeAgo({ likes, counter }: TimedBlog, ...likesAgo: [post: number, ago: string, count?: number][]): Promise<void> {
  for (const [post, ago, count = 1] of likesAgo) await db.pool.query(`insert into ${likes} (post_id, at) select $1, now() - $2::interval from generate_series(1, $3)`, [post, ago, count])
  await applyAll(db.pool, counter)
}

const wrong = async ({ counter }: TimedBlog) => [...(await timeViolations(db.pool, counter)), ...(await auditRows(db.pool, counter))]

const trending = async ({ counter }: TimedBlog, halfLife: string | null = null, limit = 10) =>
  (await db.pool.query<{ key: string; score: number }>('select key, score from pgtally.trending($1, $2, $3::interval)', [counter, limit, halfLife])).rows
const counterId = ({ counter }: TimedBlog) => value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])
const keysOf = (rows: { key: string }[]) => rows.map(({ key }) => key)

describe.concurrent('decayed scores', () => {
  test('a like weighs half after the half-life; an unlike takes away what the like weighs; without likes the score is 0', async () => {
    const blog = await createTimedBlog(db, { halfLives: ['1 hour', '1 day'] })
    await likeAgo(blog, [1, '0'], [2, '1 hour', 4], [3, '5 hours', 3], [4, '10 days', 1000])
    expect(await wrong(blog)).toEqual([])
    const near = (score: number) => expect.closeTo(score, 1)
    expect(await trending(blog)).toMatchObject([{ key: '2', score: near(2) }, { key: '1', score: near(1) }, { key: '3', score: near(3 / 32) }, { key: '4', score: near(0) }])
    expect(keysOf(await trending(blog, '24 hours'))).toEqual(['2', '3', '1', '4'])
    // Batches later, when landmarks have moved.
    await likeAgo(blog, [2, '3 hours'], [1, '2 days'])
    await db.pool.query(`delete from ${blog.likes} where post_id in (1, 3) or post_id = 2 and at > now() - interval '2 hours'`)
    await applyAll(db.pool, blog.counter)
    expect(await wrong(blog)).toEqual([])
    expect(keysOf(await trending(blog))).toEqual(['2', '4'])
    await db.pool.query(`delete from ${blog.likes}`)
    await applyAll(db.pool, blog.counter)
    expect(await trending(blog)).toEqual([])
    const { rows } = await db.pool.query(`select score_1, score_2 from pgtally.recent_${await counterId(blog)}`)
    for (const row of rows) expect(row).toEqual({ score_1: 0, score_2: 0 })
  })

  test('the order is that of the exact scores, whatever the limit, and equal ones come in the order of their keys', async () => {
    const blog = await createTimedBlog(db, { keys: Array.from({ length: 300 }, (_, n) => String(n + 1)), halfLives: ['1 minute', '1 hour', '30 days'] })
    for (let round = 0; round < 4; round++) {
      await db.pool.query(`insert into ${blog.likes} (post_id, at) select 1 + floor(298 * random() ^ 3), now() - random() ^ 4 * interval '20 days' from generate_series(1, 1500)`)
      await settle(db.pool, blog.counter)
      await db.pool.query(`delete from ${blog.likes} where id % 9 = $1`, [round])
    }
    // Two with the very same score, which the sum of several would not be for certain.
    await db.pool.query(`insert into ${blog.likes} (post_id, at) select 300 - n % 2, date_trunc('minute', now()) from generate_series(0, 99) n`)
    await settle(db.pool, blog.counter)
    expect(await wrong(blog)).toEqual([])
    for (const [halfLife, seconds] of [['1 minute', 60], ['1 hour', 3600], ['30 days', 2_592_000]] as const) {
      const { rows: exact } = await db.pool.query<{ key: string; score: number }>(
        `select post_id::text as key, sum(2 ^ (greatest(extract(epoch from date_trunc('minute', at)) - extract(epoch from now()), -400 * $1::int) / $1)::float8) as score from ${blog.likes} group by post_id order by 2 desc`,
        [seconds],
      )
      const scores = new Map(exact.map(({ key, score }) => [key, score]))
      for (const limit of [1, 7, 50, 1000]) {
        const found = keysOf(await trending(blog, halfLife, limit))
        expect(found.length).toBeGreaterThanOrEqual(Math.min(limit, exact.filter(({ score }) => score > 1e-6).length))
        expect(new Set(found).size).toBe(found.length)
        // Two that are equal but for rounding may change places; what is as small as the rounding of what was there before may be gone.
        const off = found.filter((key, n) => Math.abs((scores.get(key) ?? 0) - (exact[n]?.score ?? 0)) > 1e-7 * (1 + (exact[n]?.score ?? 0)))
        expect(off).toEqual([])
        const [one, other] = [found.indexOf('299'), found.indexOf('300')]
        expect(other === -1 || one === other - 1).toBe(true)
      }
    }
  })

  test('of tens of thousands of keys the index has the first ones, and every list is as exact as before', async () => {
    const blog = await createTimedBlog(db, { keys: Array.from({ length: 24_000 }, (_, n) => String(n + 1)), buckets: null, halfLives: ['30 days', '1 hour'], ranking: false })
    const id = await counterId(blog)
    const indexed = () => value<number>(db.pool, `select count(level_1)::int from pgtally.recent_${id}`)
    const compare = async (scope: number | null = null) => {
      for (const [halfLife, seconds] of [['30 days', 2_592_000], ['1 hour', 3600]] as const) {
        const { rows: exact } = await db.pool.query<{ key: string; score: number }>(
          `select post_id::text as key, sum(2 ^ ((extract(epoch from date_trunc('minute', at)) - extract(epoch from now())) / $1::int)::float8) as score
          from ${blog.likes} join ${blog.posts} p on p.id = post_id where $2::int is null or category = $2 group by post_id order by 2 desc`,
          [seconds, scope],
        )
        const scores = new Map(exact.map(({ key, score }) => [key, score]))
        for (const limit of [10, 100, 10_000]) {
          const found = await column<string>(db.pool, 'select key from pgtally.trending($1, $2, $3::interval, $4)', [blog.counter, limit, halfLife, scope === null ? null : { category: scope }])
          expect(found).toHaveLength(Math.min(limit, exact.length))
          expect(new Set(found).size).toBe(found.length)
          // Two that are equal but for rounding may change places.
          const off = found.filter((key, n) => Math.abs((scores.get(key) ?? 0) / (exact[n]?.score ?? 1) - 1) > 1e-7)
          expect(off).toEqual([])
        }
      }
    }

    // 3000 posts have one like, 3000 have two, and so on until eight.
    await db.pool.query(`insert into ${blog.likes} (post_id, at) select p, now() - random() * interval '10 hours' from generate_series(1, 24000) p, generate_series(0, p % 8)`)
    await db.pool.query(`update ${blog.posts} set category = case when id <= 60 then 1 else 2 end where id <= 1000`)
    await settle(db.pool, blog.counter)
    // Two likes are the floor, or the newer ones among them, where a level ends within these ten hours.
    expect(await indexed()).toBeGreaterThanOrEqual(20_000)
    expect(await indexed()).toBeLessThanOrEqual(21_000)
    for (const scope of [null, 1, 2]) await compare(scope)

    // In small batches, so that the floor stays, below most of those that are left, and above some that are new.
    for (let part = 0; part < 8; part++) {
      await db.pool.query(`delete from ${blog.likes} where post_id > 2000 and post_id % 8 > 1 and post_id / 3000 = $1`, [part])
      await settle(db.pool, blog.counter)
    }
    await db.pool.query(`insert into ${blog.likes} (post_id, at) select p, now() from generate_series(2001, 2900, 3) p, generate_series(0, p % 4)`)
    await settle(db.pool, blog.counter)
    expect(await indexed()).toBeLessThan(6000)
    for (const scope of [null, 1, 2]) await compare(scope)

    // Most are liked, and the floor rises: above some that are in the index.
    await db.pool.query(`insert into ${blog.likes} (post_id, at) select p, now() from generate_series(1501, 24000) p, generate_series(1, 2 + p % 8)`)
    await settle(db.pool, blog.counter)
    expect(await indexed()).toBeGreaterThanOrEqual(20_000)
    expect(await indexed()).toBeLessThan(24_000)
    for (const scope of [null, 1, 2]) await compare(scope)
    expect(await wrong(blog)).toEqual([])
  })

  test('very old likes weigh nothing, and stop nothing when newer ones come', async () => {
    const blog = await createTimedBlog(db, { halfLives: ['1 minute'] })
    // Of 2^-900, 2^-999, … half-lives: their products are too small for a double.
    const ages = ['200 minutes', '499 minutes', '700 minutes', '900 minutes', '999 minutes', '1001 minutes', '1050 minutes', '1100 minutes', '30 days', '2000 years']
    for (const [n, age] of ages.entries()) await likeAgo(blog, [n + 1, age])
    expect(await wrong(blog)).toEqual([])
    // Much later: as if the landmarks were of that time.
    const recent = `pgtally.recent_${await counterId(blog)}`
    for (const minutes of [80, 400, 700, 5000]) {
      await db.pool.query(`update ${recent} set landmark_1 = landmark_1 - $1::int`, [minutes])
      await db.pool.query(`update ${blog.likes} set at = at - $1::int * interval '1 minute' where at > '0010-01-01'`, [minutes])
      // The update has been counted by the triggers; here time has passed instead.
      await db.pool.query(`truncate pgtally.event_${await value<number>(db.pool, 'select pgtally.queue_id($1)', [blog.counter])}`)
      expect(await auditRows(db.pool, blog.counter).then((rows) => rows.filter(({ part }) => part?.startsWith('score')))).toEqual([])
      expect((await trending(blog)).every(({ score }) => score > 0)).toBe(true)
      for (let post = 1; post <= ages.length; post++) await likeAgo(blog, [post, '0'])
      expect(await trending(blog)).toHaveLength(ages.length)
    }
    await tally.counter(blog.counter).reconcile()
    expect(await wrong(blog)).toEqual([])
  })

  test('likes of the future weigh nothing until then, and neither do they come back as something else', async () => {
    const blog = await createTimedBlog(db)
    await likeAgo(blog, [1, '-1 year', 50], [2, '0'], [3, '-5000 years'], [4, '-3 minutes'])
    expect(keysOf(await trending(blog)).toSorted()).toEqual(['2', '4'])
    expect(await auditRows(db.pool, blog.counter)).toEqual([])
    await db.pool.query(`delete from ${blog.likes} where post_id = 1`)
    await applyAll(db.pool, blog.counter)
    expect(await wrong(blog)).toEqual([])
  })

  test('a like of the future weighs what it shall when its time has come, and so does its unlike; audits know that', async () => {
    const blog = await createTimedBlog(db, { buckets: null, halfLives: ['1 minute', '30 days'] })
    await likeAgo(blog, [1, '-1 hour', 8], [2, '-1 hour', 3], [3, '-1 hour', 2], [4, '-1 hour'], [5, '-1 day', 9], [6, '-9000 years'])
    await db.pool.query(`delete from ${blog.likes} where post_id = 4`)
    await applyAll(db.pool, blog.counter)
    expect(await trending(blog)).toEqual([])
    expect(await wrong(blog)).toEqual([])
    // As if an hour had passed.
    const later = `pgtally.later_${await counterId(blog)}`
    await db.pool.query(`update ${later} set time = time - interval '1 hour'; set session_replication_role = replica; update ${blog.likes} set at = at - interval '1 hour'; reset session_replication_role`)
    // It waits for the next batch.
    expect(await auditRows(db.pool, blog.counter)).toEqual([])
    await likeAgo(blog, [7, '0'])
    expect(keysOf(await trending(blog))).toEqual(['1', '2', '3', '7'])
    expect(await wrong(blog)).toEqual([])
    await db.pool.query(`delete from ${blog.likes} where post_id in (1, 5, 6) or id = (select min(id) from ${blog.likes} where post_id = 2)`)
    await db.pool.query(`update ${blog.likes} set at = at - interval '1 hour' where post_id = 3`)
    await applyAll(db.pool, blog.counter)
    expect(keysOf(await trending(blog)).slice(0, 2)).toEqual(['2', '7'])
    expect(await wrong(blog)).toEqual([])
  })

  test('likes of the future that nobody has counted wait as well, once a reconciliation has found them', async () => {
    const blog = await createTimedBlog(db, { halfLives: ['1 minute', '30 days'] })
    const later = `pgtally.later_${await counterId(blog)}`
    // As if they had been there before the counter; and what waits although there is no such like.
    await db.pool.query(`set session_replication_role = replica; insert into ${blog.likes} (post_id, at) select p, now() + interval '1 hour' from unnest('{1,1,2,3}'::int[]) p; reset session_replication_role`)
    await db.pool.query(`insert into ${later} (key, time, delta) values (5, date_trunc('hour', now()) + interval '1 day', 1)`)
    const waiting = (await auditRows(db.pool, blog.counter)).filter(({ part }) => part?.startsWith('scores to come at'))
    expect(waiting.map(({ key, source, stored }) => [key, source, stored])).toEqual([['1', '2', '0'], ['2', '1', '0'], ['3', '1', '0'], ['5', '0', '1']])
    await tally.counter(blog.counter).reconcile()
    expect(await auditRows(db.pool, blog.counter)).toEqual([])
    await likeAgo(blog, [4, '-1 hour'])
    await db.pool.query(`delete from ${blog.likes} where post_id = 3`)
    await settle(db.pool, blog.counter)
    expect(await wrong(blog)).toEqual([])
    // As if an hour had passed.
    await db.pool.query(`update ${later} set time = time - interval '1 hour'; set session_replication_role = replica; update ${blog.likes} set at = at - interval '1 hour'; reset session_replication_role`)
    await likeAgo(blog, [6, '0'])
    expect(keysOf(await trending(blog, '30 days')).toSorted()).toEqual(['1', '2', '4', '6'])
    expect((await wrong(blog)).filter(({ part }) => part?.startsWith('score'))).toEqual([])
  })

  test('when many are taken back at once, what an older like weighs stays; and when all are, nothing', async () => {
    const blog = await createTimedBlog(db, { buckets: null, halfLives: ['6 hours', '97 seconds'] })
    await likeAgo(blog, [1, '4 days'], [1, '0', 50_000])
    await db.pool.query(`delete from ${blog.likes} where at > now() - interval '1 day'`)
    await applyAll(db.pool, blog.counter)
    expect(await wrong(blog)).toEqual([])
    expect(keysOf(await trending(blog))).toEqual(['1'])

    // Beside a like of now an old one is rounded: what is left of that when both are gone is no score.
    for (const ago of ['7 days', '0']) await likeAgo(blog, ...Array.from({ length: 9 }, (_, n): [number, string] => [n + 2, ago === '0' ? ago : `${7 * 24 - n} hours`]))
    for (const since of ['1 day', '1 year']) {
      await db.pool.query(`delete from ${blog.likes} where post_id > 1 and at > now() - $1::interval`, [since])
      await applyAll(db.pool, blog.counter)
    }
    expect(keysOf(await trending(blog))).toEqual(['1'])

    // Nor where one gets into the score in one way and out of it in another: because it lay ahead, or was corrected.
    const later = `pgtally.later_${await counterId(blog)}`
    await likeAgo(blog, ...Array.from({ length: 4 }, (_, n): [number, string] => [n + 2, `-${n + 20} minutes`]))
    await db.pool.query(`
      update ${later} set time = time - interval '20 minutes';
      set session_replication_role = replica;
      update ${blog.likes} set at = at - interval '20 minutes';
      insert into ${blog.likes} (post_id, at) select n, now() - n * interval '1 minute' from generate_series(6, 10) n;
      reset session_replication_role`)
    await tally.counter(blog.counter).reconcile()
    await likeAgo(blog, [2, '0'])
    expect(await trending(blog, '97 seconds')).toHaveLength(9)
    await db.pool.query(`delete from ${blog.likes} where post_id > 1`)
    await applyAll(db.pool, blog.counter)
    expect(keysOf(await trending(blog))).toEqual(['1'])
    expect(await trending(blog, '97 seconds')).toEqual([])
  })

  test('sessions that show numbers with few digits write and read the same scores', async () => {
    const blog = await createTimedBlog(db, { buckets: null, halfLives: ['97 seconds', '1 year'] })
    const session = await db.connect()
    await session.query('set extra_float_digits = -15')
    await session.query(`insert into ${blog.likes} (post_id, at) select 1 + n % 3, now() - n * interval '1 second' from generate_series(0, 100) n`)
    await applyAll(session, blog.counter)
    expect(await wrong(blog)).toEqual([])
    const list = (of: Session) => column<string>(of, `select key || ' ' || score::int from pgtally.trending($1, 10, '1 year')`, [blog.counter])
    expect(await list(session)).toEqual(await list(db.pool))
    expect(await list(session)).toHaveLength(3)
  })

  test('without a time of the rows, the time of the event counts', async () => {
    const name = 'page_views'
    await createCounterBySql(db.pool, name, { key_type: `'text'`, half_lives: `'{30 days}'`, buckets: `'[{"width": "1 hour", "retain": "1 day"}]'`, ranking: 'true' })
    await db.pool.query('select pgtally.add_events($1, $2, $3)', [name, ['/a', '/b', '/b'], [1, 1, 1]])
    await applyAll(db.pool, name)
    const list = async () => (await db.pool.query('select t.key, round(t.score::numeric, 1)::text as score, w.count::int, a.count::int as all from pgtally.trending($1) t join pgtally.top($1, 10, now() - interval \'3 hours\') w using (key) join pgtally.top($1) a using (key) order by 2 desc', [name])).rows
    expect(await list()).toEqual([{ key: '/b', score: '2.0', count: 2, all: 2 }, { key: '/a', score: '1.0', count: 1, all: 1 }])
    // reset() takes back what is stored and what is pending; what comes later counts.
    await db.pool.query('select pgtally.add_event($1, $2, 5)', [name, '/b'])
    await tally.counter(name).resetAll()
    await db.pool.query('select pgtally.add_event($1, $2, 7)', [name, '/c'])
    await settle(db.pool, name)
    expect(await list()).toEqual([{ key: '/c', score: '7.0', count: 7, all: 7 }])
    expect(await column(db.pool, 'select count::int from pgtally.series($1, $2, \'1 hour\', now() - interval \'2 hours\')', [name, '/b'])).toEqual([0, 0])
  })
})

describe.concurrent('spikes', () => {
  test('are what is counted more often than before, by figures computed by hand', () => withinOne(db.pool, '1 hour', async () => {
    const blog = await createTimedBlog(db, { buckets: [{ width: '1 hour', retain: 'forever' }], halfLives: null })
    const { counter, likes } = blog
    const spikes = async (...rest: unknown[]) =>
      (await db.pool.query('select key, round(score::numeric, 6)::float as score, count::int, round(expected::numeric, 6)::float as expected from pgtally.spikes($1, 10, $2, $3, $4)', [counter, ...rest])).rows
    // In the bucket of now, and that many hours before it.
    const likeHours = (post: number, hours: number, count: number) =>
      db.pool.query(`insert into ${likes} (post_id, at) select $1, date_bin('1 hour', now(), '2000-01-01') - $2::int * interval '1 hour' from generate_series(1, $3)`, [post, hours, count])
    await likeHours(1, 0, 20)
    for (const hours of [1, 2, 3, 4]) await likeHours(1, hours, 6)
    await likeHours(2, 0, 12)
    await likeHours(3, 0, 9)
    await likeHours(4, 0, 100)
    for (const hours of [1, 2, 3, 4]) await likeHours(4, hours, 100)
    // Beyond the baseline, and in the future.
    await likeHours(2, 5, 1000)
    await likeHours(2, -3, 500)
    await likeHours(5, -3, 500)
    await applyAll(db.pool, counter)
    const first = { key: '2', score: 12, count: 12, expected: 0 }
    const second = { key: '1', score: Number((14 / Math.sqrt(7)).toFixed(6)), count: 20, expected: 6 }
    expect(await spikes('1 hour', 4, 10)).toEqual([first, second])
    expect(await spikes('1 hour', 4, 13)).toEqual([second])
    expect(await spikes('1 hour', 4, 9)).toEqual([first, { key: '3', score: 9, count: 9, expected: 0 }, second])
    // Two hours: 26 against (12 + 6) / 2 for the first post.
    expect((await spikes('2 hours', 2, 13)).filter(({ key }) => key === '1')).toEqual([{ key: '1', score: Number((17 / Math.sqrt(10)).toFixed(6)), count: 26, expected: 9 }].map((row) => ({ ...row, expected: 9 })))
    await db.pool.query(`update ${blog.posts} set category = 7 where id = 1`)
    expect(await column(db.pool, `select key from pgtally.spikes($1, 10, '1 hour', 4, 9, '{"category": 7}')`, [counter])).toEqual(['1'])
  }))

  test('take the narrow buckets for what is new and the wide ones for what was before, also of days in a time zone', () => withinOne(db.pool, '1 hour', async () => {
    const session = await db.connect()
    const blog = await createTimedBlog(db, { buckets: [{ width: '1 day', retain: 'forever', time_zone: 'America/New_York' }], halfLives: null })
    // One like on each of the last 400 days, so that there is a change of the clock among them.
    await db.pool.query(
      `insert into ${blog.likes} (post_id, at) select 1, (date_trunc('day', now() at time zone 'America/New_York') - n * interval '1 day') at time zone 'America/New_York' + interval '1 second' from generate_series(1, 399) n, generate_series(1, 4)`,
    )
    await db.pool.query(`insert into ${blog.likes} (post_id, at) select 1, now() from generate_series(1, 20)`)
    await applyAll(db.pool, blog.counter)
    for (const zone of ['UTC', 'America/New_York', 'Asia/Tokyo']) {
      await session.query(`set timezone = '${zone}'`)
      for (const windows of [1, 100, 200, 300, 398]) {
        expect({ zone, windows, rows: (await session.query(`select count::int, expected from pgtally.spikes($1, 10, '1 day', $2)`, [blog.counter, windows])).rows }).toEqual({ zone, windows, rows: [{ count: 20, expected: 4 }] })
      }
    }
  }))
})

test('a list that cannot be had is refused with one clear error', async () => {
  const full = await createTimedBlog(db, { buckets: [{ width: '1 minute', retain: '2 hours' }, { width: '1 day', retain: 'forever' }] })
  const bare = await createTimedBlog(db, { buckets: null, halfLives: null, ranking: false })
  const refused = async (call: string, code: string, message: RegExp, { counter } = full) => {
    const error = await outcome(db.pool.query(`select * from pgtally.${call.replace('NAME', `'${counter}'`)}`))
    expect({ call, error }).toMatchObject({ call, error: { code, message: expect.stringMatching(message), hint: expect.any(String) } })
  }
  for (const call of ['top(NAME, ', 'trending(NAME, ', 'spikes(NAME, ']) {
    for (const limit of ['0', '-1', '10001', 'null']) await refused(`${call}${limit})`, 'TL003', /list of/)
  }
  for (const call of [`top('nobody')`, `trending('nobody')`, `spikes('nobody')`, `series('nobody', '1', '1 hour')`]) await refused(call, 'TL001', /"nobody"/)
  for (const call of ['top(NAME)', `top(NAME, 10, now() - interval '1 hour')`, 'trending(NAME)', 'spikes(NAME)', `series(NAME, '1', '1 hour')`]) await refused(call, 'TL009', /no |keeps no/, bare)
  // In a table of pgtally's own there is nothing that a scope could be about.
  await createCounterBySql(db.pool, 'own_target', { key_type: `'text'`, half_lives: `'{1 hour}'`, buckets: `'[{"width": "1 hour", "retain": "1 day"}]'`, ranking: 'true' })
  for (const rest of ['top(NAME, 10, null, null, ', `top(NAME, 10, now() - interval '1 hour', null, `, 'trending(NAME, 10, null, ', `spikes(NAME, 10, '1 hour', 3, 1, `]) await refused(`${rest}'{"category": 1}')`, 'TL009', /table of pgtally/, { ...bare, counter: 'own_target' })
  await refused('trending(NAME)', 'TL009', /keeps no scores$/, bare)
  await refused(`top(NAME, 10, now() - interval '1 hour')`, 'TL009', /has no time buckets$/, bare)
  await refused(`trending(NAME, 10, '2 hours')`, 'TL009', /half-life/)
  for (const scope of [`'7'`, `'[]'`, `'null'`, `'{"nothing": 1}'`, `'{"category": {}}'`, `'{"category": [1]}'`, `'{"category": "seven"}'`, `'{"category": 1.5}'`, `'{"ctid; drop": 1}'`]) {
    for (const call of ['top(NAME, 10, null, null, ', `top(NAME, 10, now() - interval '1 hour', null, `, 'trending(NAME, 10, null, ', `spikes(NAME, 10, '1 day', 3, 1, `]) await refused(`${call}${scope})`, 'TL003', /"timed_/)
  }
  for (const times of ['null, now()', 'now(), now()', `now(), now() - interval '1 second'`, `'infinity', null`, `'-infinity', now()`, `now() - interval '1 day', 'infinity'`]) await refused(`top(NAME, 10, ${times})`, 'TL003', /time/)
  for (const rest of [`'0', 24, 10`, `'-1 hour', 24, 10`, `null, 24, 10`, `'1 hour', 0, 10`, `'1 hour', 1001, 10`, `'1 hour', null, 10`, `'1 hour', 24, 0`, `'1 hour', 24, null`]) await refused(`spikes(NAME, 10, ${rest})`, 'TL003', /baseline/)
  for (const rest of [`'90 seconds', 1, 10`, `'7 days', 1000000, 1`, `'3 hours', 20, 10`]) await refused(`spikes(NAME, 10, ${rest})`, /1000000/.test(rest) ? 'TL003' : 'TL009', /windows|no buckets/)
  for (const rest of [`'90 seconds'`, 'null', `'0'`, `'-1 hour'`, `'2 days'`, `'100000000 years'`, `'7 hours'`]) await refused(`series(NAME, '1', ${rest})`, 'TL009', /no buckets from which/)
  for (const rest of [`'1 minute', now() - interval '8 days'`, `'1 minute', now(), now()`, `'1 day', '-infinity'`, `'1 day', now(), 'infinity'`, `'1 day', now(), now() - interval '1 day'`]) await refused(`series(NAME, '1', ${rest})`, 'TL003', /series/)
  expect(await outcome(db.pool.query(`select * from pgtally.series($1, 'x', '1 day')`, [full.counter]))).toMatchObject({ code: '22P02' })
})
