import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, column, installed, outcome, value } from './support/fixtures.ts'
import { auditRows, createCounterBySql, createTimedBlog, timeViolations, withinOne, type TimedBlog } from './support/times.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** [start in UTC, count] of a key's buckets. */
async function series({ counter }: TimedBlog, width: string, from: string, to: string, zone = 'UTC'): Promise<[string, number][]> {
  const client = await db.pool.connect()
  try {
    // Whatever the session's time zone is.
    await client.query(`set timezone = '${zone}'`)
    const { rows } = await client.query<{ start: string; count: number }>(
      `select to_char(start at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as start, count::int from pgtally.series($1, '1', $2, $3::timestamptz, $4::timestamptz) order by 1`,
      [counter, width, from, to],
    )
    return rows.map(({ start, count }) => [start, count])
  } finally {
    await client.query('reset timezone')
    client.release()
  }
}

/** A like each `step` from one time to the other. */
async function likeEach({ likes, counter }: TimedBlog, step: string, from: string, to: string): Promise<void> {
  await db.pool.query(`insert into ${likes} (post_id, at) select 1, t from generate_series($2::timestamptz at time zone 'UTC', $3::timestamptz at time zone 'UTC' - interval '1 second', $1::interval) u(local), lateral (select local at time zone 'UTC') v(t)`, [step, from, to])
  await applyAll(db.pool, counter)
}

const days = (blog: TimedBlog, from: string, to: string, zone?: string) => series(blog, '1 day', from, to, zone)
const sessionZones = ['UTC', 'America/New_York', 'Europe/Berlin', 'Pacific/Kiritimati']

describe.concurrent('days, weeks, months and years of a time zone', () => {
  // A like each half an hour, so a day of 24 hours has 48.
  const cases: [zone: string, from: string, to: string, expected: [string, number][]][] = [
    ['Europe/Berlin', '2026-03-27T23:00Z', '2026-03-30T22:00Z', [['2026-03-27 23:00', 48], ['2026-03-28 23:00', 46], ['2026-03-29 22:00', 48]]],
    ['Europe/Berlin', '2026-10-23T22:00Z', '2026-10-26T23:00Z', [['2026-10-23 22:00', 48], ['2026-10-24 22:00', 50], ['2026-10-25 23:00', 48]]],
    // Midnight was left out on 2018-11-04, and there was 23:00 twice on 2018-02-17.
    ['America/Sao_Paulo', '2018-11-03T03:00Z', '2018-11-06T02:00Z', [['2018-11-03 03:00', 48], ['2018-11-04 03:00', 46], ['2018-11-05 02:00', 48]]],
    ['America/Sao_Paulo', '2018-02-16T02:00Z', '2018-02-19T03:00Z', [['2018-02-16 02:00', 48], ['2018-02-17 02:00', 50], ['2018-02-18 03:00', 48]]],
    ['Asia/Kolkata', '2026-01-01T18:30Z', '2026-01-03T18:30Z', [['2026-01-01 18:30', 48], ['2026-01-02 18:30', 48]]],
    // 2011-12-30 was left out.
    ['Pacific/Apia', '2011-12-28T10:00Z', '2012-01-01T10:00Z', [['2011-12-28 10:00', 48], ['2011-12-29 10:00', 48], ['2011-12-30 10:00', 48], ['2011-12-31 10:00', 48]]],
    // Half an hour.
    ['Australia/Lord_Howe', '2026-04-03T13:00Z', '2026-04-06T13:30Z', [['2026-04-03 13:00', 48], ['2026-04-04 13:00', 49], ['2026-04-05 13:30', 48]]],
  ]
  for (const [zone, from, to, expected] of cases) {
    test(`days in ${zone} from ${from}`, async () => {
      const blog = await createTimedBlog(db, { buckets: [{ width: '1 day', retain: 'forever', time_zone: zone }] })
      await likeEach(blog, '30 minutes', from, to)
      for (const sessionZone of sessionZones) expect(await days(blog, from, to, sessionZone)).toEqual(expected)
      expect(await timeViolations(db.pool, blog.counter)).toEqual([])
      expect(await auditRows(db.pool, blog.counter)).toEqual([])
    })
  }

  test('where midnight comes twice (Havana), each like is in one bucket', async () => {
    const blog = await createTimedBlog(db, { buckets: [{ width: '1 day', retain: 'forever', time_zone: 'America/Havana' }] })
    for (const hour of ['03:30', '04:30', '05:30', '03:45', '04:45']) await likeEach(blog, '1 day', `2026-11-01T${hour}Z`, `2026-11-01T${hour}:02Z`)
    const found = await days(blog, '2026-10-30T00:00Z', '2026-11-04T00:00Z')
    expect(found.reduce((sum, [, count]) => sum + count, 0)).toBe(5)
    expect(found.map(([, count]) => count)).toEqual([0, 2, 3, 0, 0].slice(0, found.length))
    expect(await timeViolations(db.pool, blog.counter)).toEqual([])
    expect(await auditRows(db.pool, blog.counter)).toEqual([])
  })

  test('weeks, months and years are sums of days, whether kept or not', async () => {
    const zone = 'Europe/Berlin'
    const [fromDays, own] = [
      await createTimedBlog(db, { buckets: [{ width: '1 day', retain: 'forever', time_zone: zone }] }),
      await createTimedBlog(db, { buckets: ['1 week', '1 month', '1 year'].map((width) => ({ width, retain: 'forever', time_zone: zone })) }),
    ]
    const truth = async (unit: string, from: string, to: string) =>
      (await db.pool.query<{ start: string; count: number }>(
        `select to_char(start at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as start, count::int from (
          select date_trunc('${unit}', at at time zone '${zone}') at time zone '${zone}' as start, count(*) from ${own.likes} group by 1) b where start >= $1 and start < $2 order by 1`,
        [from, to],
      )).rows.map(({ start, count }) => [start, count])
    for (const blog of [fromDays, own]) await likeEach(blog, '7 hours', '2024-06-01T00:00Z', '2026-08-01T00:00Z')
    for (const sessionZone of sessionZones) {
      for (const [width, unit, from, to] of [
        ['1 week', 'week', '2026-03-01T00:00Z', '2026-04-20T00:00Z'],
        ['1 month', 'month', '2025-01-01T00:00Z', '2026-04-01T00:00Z'],
        ['1 month', 'month', '2026-01-15T00:00Z', '2026-03-02T00:00Z'],
        ['1 year', 'year', '2024-01-01T00:00Z', '2026-07-01T00:00Z'],
        ['12 months', 'year', '2024-01-01T00:00Z', '2026-07-01T00:00Z'],
        ['7 days', 'week', '2025-10-01T00:00Z', '2025-12-01T00:00Z'],
      ] as const) {
        const expected = await truth(unit, from, to)
        expect({ width, from, found: await series(fromDays, width, from, to, sessionZone) }).toEqual({ width, from, found: expected })
        expect({ width, from, found: await series(own, width, from, to, sessionZone) }).toEqual({ width, from, found: expected })
      }
    }
    for (const { counter } of [fromDays, own]) expect(await auditRows(db.pool, counter)).toEqual([])
  })

  test('days of UTC are sums of hours, hours of minutes, in sessions of any time zone', async () => {
    const blog = await createTimedBlog(db, { buckets: [{ width: '5 minutes', retain: 'forever' }] })
    await likeEach(blog, '10 minutes', '2026-03-06T00:00Z', '2026-03-11T00:00Z')
    for (const sessionZone of sessionZones) {
      expect(await days(blog, '2026-03-07T00:00Z', '2026-03-12T00:00Z', sessionZone)).toEqual([['2026-03-07 00:00', 144], ['2026-03-08 00:00', 144], ['2026-03-09 00:00', 144], ['2026-03-10 00:00', 144], ['2026-03-11 00:00', 0]])
      expect(await series(blog, '6 hours', '2026-03-08T01:00Z', '2026-03-09T00:00Z', sessionZone)).toEqual([['2026-03-08 06:00', 36], ['2026-03-08 12:00', 36], ['2026-03-08 18:00', 36]])
      expect(await series(blog, '24 hours', '2026-03-08T00:00Z', '2026-03-08T00:00:01Z', sessionZone)).toEqual([['2026-03-08 00:00', 144]])
    }
  })
})

test('the last 60 buckets up to now, gaps as 0, beginning with the first that is kept', () => withinOne(db.pool, '1 minute', async () => {
  const blog = await createTimedBlog(db, { buckets: [{ width: '1 minute', retain: '20 minutes' }, { width: '1 day', retain: 'forever' }] })
  await db.pool.query(`insert into ${blog.likes} (post_id, at) select 1, now() - n * interval '10 days' from generate_series(0, 9) n`)
  await applyAll(db.pool, blog.counter)
  const counts = await column<number>(db.pool, `select count::int from pgtally.series($1, '1', '1 day')`, [blog.counter])
  expect(counts).toHaveLength(60)
  expect(counts).toEqual(Array.from({ length: 60 }, (_, n) => Number((59 - n) % 10 === 0)))
  // Nobody has anything, and one that does not exist.
  for (const key of ['2', '999']) expect(await column(db.pool, `select distinct count::int from pgtally.series($1, $2, '1 day')`, [blog.counter, key])).toEqual([0])
  const kept = await value<number>(db.pool, `select count(*)::int from pgtally.series($1, '1', '1 minute')`, [blog.counter])
  expect(kept).toBeGreaterThanOrEqual(20)
  expect(kept).toBeLessThanOrEqual(26)
  expect(await value(db.pool, `select count(*)::int from pgtally.series($1, '1', '1 minute', now() + interval '1 hour', now() + interval '2 hours')`, [blog.counter])).toBe(60)
}))

test('a chart of few bars that would be the sum of very many buckets is refused at once', async () => {
  const { counter } = await createTimedBlog(db, { buckets: [{ width: '1 second', retain: 'forever' }] })
  const lastDays = (count: number) => outcome(db.pool.query(`select count(*)::int from pgtally.series($1, '1', '1 day', now() - $2 * interval '1 day')`, [counter, count]))
  expect(await lastDays(1)).toBe('done')
  for (const count of [12, 9000]) expect(await lastDays(count)).toMatchObject({ code: 'TL003', message: expect.stringContaining('1000000 buckets of 00:00:01') })
})

test('a definition that will not do is refused with one clear error, and nothing is changed', async () => {
  const { likes, posts, counter } = await createTimedBlog(db)
  await db.pool.query(`alter table ${likes} add column day date, add column text text, add column other timestamptz`)
  const state = () => value<string>(db.pool, `select md5(string_agg(c::text, ',' order by c.oid)) from (select oid, relname, relkind from pg_class where relname !~ '^pg_' ) c`)
  const before = await state()
  const bucket = (...buckets: unknown[]) => ({ buckets: `'${JSON.stringify(buckets).replaceAll("'", "''")}'` })
  const one = (width: unknown, retain: unknown = 'forever', rest: object = {}) => bucket({ width, retain, ...rest })
  const wrong: Record<string, string>[] = [
    ...['7 minutes', '0', '-1 hour', '90 minutes 1 second', '0.5 seconds', '2 days', '36 hours', '2 months', '1 month 1 day', '10 years', 'an hour', '', 'infinity', '100000000 years'].map((width) => one(width)),
    ...['0', '59 minutes', '-1 hour', 'never', '', 'infinity', '1001 years', '170000000 years'].map((retain) => one('1 hour', retain)),
    one('1 day', '12 hours'), one('1 month', '29 days'), one('1 hour', null), one(null), one('1 hour', '1 day', { time_zone: 'Europe/Berlin' }),
    ...['Nowhere', '', 'CEST+5', "'", 'europe'].map((zone) => one('1 day', 'forever', { time_zone: zone })), one('1 hour', '1 day', { more: 1 }),
    bucket({ width: '60 minutes', retain: '1 day' }, { width: '1 hour', retain: '2 days' }), bucket(...Array.from({ length: 11 }, (_, n) => ({ width: `${n + 1} hours`, retain: 'forever' }))),
    bucket(), bucket(7), bucket('1 hour'), bucket(null), bucket([]), { buckets: `'{}'` }, { buckets: `'7'` }, { buckets: `'null'` },
    ...['{}', '{0}', '{59 seconds}', '{-1 hour}', '{1 hour,60 minutes}', '{NULL}', '{1 hour,2 hours,3 hours,4 hours,5 hours,6 hours,7 hours,8 hours,9 hours,10 hours,11 hours}'].map((given) => ({ half_lives: `'${given}'` })),
    ...['nothing', 'day', 'text', 'post_id', 'ctid', ''].map((name) => ({ source_time: `'${name}'` })),
  ]
  // An infinite interval is known from version 17 on; before, it is no interval at all (22007).
  if ((await value<number>(db.pool, `select current_setting('server_version_num')::int`)) >= 170_000) wrong.push({ half_lives: `'{infinity}'` })
  for (const given of wrong) {
    const error = await outcome(createCounterBySql(db.pool, 'refused', { source: `'${likes}'`, source_key: `'post_id'`, ...given }))
    expect({ given, error }).toMatchObject({ given, error: { code: 'TL003', message: expect.stringContaining('"refused"'), hint: expect.any(String) } })
  }
  expect(await outcome(createCounterBySql(db.pool, 'refused', { source_time: `'at'` }))).toMatchObject({ code: 'TL003' })
  expect(await state()).toBe(before)
  // The same again is none; another is.
  const given = (more: Record<string, string>) => ({ source: `'${likes}'`, source_key: `'post_id'`, target: `'${posts}'`, target_key: `'id'`, target_column: `'like_count'`, source_time: `'at'`, ranking: 'true', half_lives: `'{60 minutes,1 week}'`,
    ...bucket({ width: '24 hours', retain: 'forever', time_zone: 'Europe/Berlin' }, { width: '60 minutes', retain: 'forever' }, { width: '60 seconds', retain: 'forever' }), ...more })
  await createCounterBySql(db.pool, counter, given({}))
  for (const more of [{ ranking: 'false' }, { half_lives: `'{1 hour}'` }, { source_time: `'other'` }, one('1 hour')]) expect(await outcome(createCounterBySql(db.pool, counter, given(more)))).toMatchObject({ code: 'TL002' })
})

test('months are kept as long as the calendar has them', async () => {
  for (const [width, retain, zone] of [['1 month', '1 month', 'UTC'], ['1 day', '1 day', 'Europe/Berlin'], ['1 year', '1 year', 'UTC'], ['1 day', '6 months', 'UTC'], ['1 hour', '1 month', undefined], ['1 week', '1 week', 'America/New_York']] as const) {
    const blog = await createTimedBlog(db, { buckets: [{ width, retain, ...(zone !== undefined && { time_zone: zone }) }] })
    // In the longest months, days and years. Four slots are kept, and the one of now.
    const longest = retain.endsWith('day') ? '25 hours' : retain.endsWith('week') ? '169 hours' : retain === '6 months' ? '184 days' : retain.endsWith('month') ? '31 days' : '366 days'
    expect({ width, kept: await value(db.pool, `select 4 * slot_span >= $2::interval from pgtally.bucket b join pgtally.counter k using (counter_id) where k.name = $1`, [blog.counter, longest]) }).toEqual({ width, kept: true })
  }
  expect(await tally.drain()).toMatchObject({ failed: [] })
})
