import { CamelCasePlugin, Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import { createTally, type CounterDefinition, type PgtallyError, type Tally } from '../src/index.ts'
import { here } from './support/command-line.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { installed, outcome, value } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

const definition: CounterDefinition = {
  source: { table: 'likes', key: 'post_id', time: 'created_at' },
  target: { table: 'posts', key: 'id', column: 'like_count' },
  // What is now is in one minute or the next: never before an hour's beginning.
  buckets: [{ width: '1 minute', retain: 'forever' }, { width: '1 day', retain: 'forever', timeZone: 'Europe/Berlin' }],
  ranking: true,
  trending: [{ halfLife: '6 hours' }, { halfLife: '1 hour' }],
}
const likes = () => tally.counter<number>('likes')

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  await db.pool.query(`
    create table posts (id bigint primary key, like_count bigint not null default 0, other_count bigint not null default 0, kind text, category_id int, open boolean, "When" date);
    create table likes (post_id bigint, created_at timestamptz not null default now());
    insert into posts values (1, 0, 0, 'a', 7, true, '2024-01-01'), (2, 0, 0, 'a=b', 7, false, null), (3, 0, 0, 'a', 8, true, null), (4, 0, 0, null, 8, true, null)`)
  await tally.createCounter('likes', definition)
  await tally.createCounter('plain', { source: { table: 'likes', key: 'post_id' } })
  await db.pool.query(`
    insert into likes select 1, t from unnest('{2024-01-30 22:59:59Z, 2024-01-30 23:00Z, 2024-01-31 10:00:01Z, 2024-01-31 12:59Z, 2024-02-01 09:00Z}'::timestamptz[]) t;
    insert into likes select 2, '2024-01-31 10:30Z' from generate_series(1, 3);
    insert into likes select 3, now() from generate_series(1, 20);
    insert into likes select 3, now() - interval '1 hour' * n from generate_series(2, 4) n;
    insert into likes select 4, now() from generate_series(1, 2)`)
  await tally.drain()
  return db.drop
})

const at = (time: string) => new Date(`${time}Z`)
const day = { width: '1 hour', from: at('2024-01-31T09:00'), to: at('2024-01-31T13:00') }
const ofDay = [
  { start: at('2024-01-31T09:00'), count: 0 },
  { start: at('2024-01-31T10:00'), count: 1 },
  { start: at('2024-01-31T11:00'), count: 0 },
  { start: at('2024-01-31T12:00'), count: 1 },
]

describe('the definition', () => {
  test('reaches the server whole: the same changes nothing, another is refused', async () => {
    expect(await tally.createCounter('likes', definition)).toBe(false)
    expect((await db.pool.query('select width::text, retain::text, time_zone from pgtally.bucket_status() order by 1')).rows).toEqual([
      { width: '00:01:00', retain: null, time_zone: null },
      { width: '1 day', retain: null, time_zone: 'Europe/Berlin' },
    ])
    const others: CounterDefinition[] = [
      { ...definition, source: { table: 'likes', key: 'post_id' } },
      { ...definition, buckets: [{ width: '1 minute', retain: 'forever' }, { width: '1 day', retain: 'forever' }] },
      { ...definition, buckets: [{ width: '1 minute', retain: '30 days' }, { width: '1 day', retain: 'forever', timeZone: 'Europe/Berlin' }] },
      { ...definition, ranking: false },
      { ...definition, trending: [{ halfLife: '6 hours' }] },
    ]
    for (const other of others) await expect(tally.createCounter('likes', other)).rejects.toMatchObject({ code: 'DEFINITION_CONFLICT' })
  })

  const refused: [what: string, definition: object, says: RegExp][] = [
    ['no buckets', { buckets: [] }, /buckets/],
    ['a bucket that is not retained', { buckets: [{ width: '1 hour' }] }, /retain/],
    ['a bucket with a misspelled option', { buckets: [{ width: '1 hour', retain: 'forever', timezone: 'UTC' }] }, /timezone/],
    ['a width in milliseconds', { buckets: [{ width: 3_600_000, retain: 'forever' }] }, /width/],
    ['a width that is none', { buckets: [{ width: 'an hour', retain: 'forever' }] }, /an hour/],
    ['no half-lives', { trending: [] }, /trending/],
    ['a half-life in milliseconds', { trending: [{ halfLife: 3_600_000 }] }, /halfLife/],
    ['a half-life that is none', { trending: [{ halfLife: 'soon' }] }, /"soon".*'1 hour'/],
    ['a half-life that is too long', { trending: [{ halfLife: '999999999999 years' }] }, /out of range.*'1 hour'/],
    // A server of version 17 or later knows it, and would count no more.
    ['a half-life without an end', { trending: [{ halfLife: 'infinity' }] }, /infinity/],
    ['a ranking that is neither on nor off', { ranking: 'yes' }, /ranking/],
    ['a time without a source', { source: { time: 'created_at' } }, /source/],
    ['a time that is no column', { source: { table: 'likes', key: 'post_id', time: 'at' } }, /at/],
  ]
  test.each(refused)('%s: refused', async (_, bad, says) => {
    await expect(tally.createCounter('refused', bad as CounterDefinition)).rejects.toMatchObject({ name: 'PgtallyError', code: 'INVALID_DEFINITION', message: expect.stringMatching(says) })
  })
})

describe('reading', () => {
  test('series: buckets with dates and numbers, without gaps', async () => {
    expect(await likes().series(1, day)).toEqual(ofDay)
    expect(await likes().series(1, { ...day, bigint: true })).toEqual(ofDay.map(({ start, count }) => ({ start, count: BigInt(count) })))
    expect(await likes().series(9, day)).toEqual(ofDay.map(({ start }) => ({ start, count: 0 })))
    expect(await likes().series(1, { width: '1 day', from: at('2024-01-29T23:00'), to: at('2024-01-31T23:00') })).toEqual([
      { start: at('2024-01-29T23:00'), count: 1 },
      { start: at('2024-01-30T23:00'), count: 3 },
    ])
    const recent = await likes().series(3, { width: '1 hour' })
    expect(recent).toHaveLength(60)
    expect(recent.reduce((sum, { count }) => sum + count, 0)).toBe(23)
  })

  test('top: of all time and of a window, of some keys or all', async () => {
    expect(await likes().top()).toEqual([{ key: '3', count: 23 }, { key: '1', count: 5 }, { key: '2', count: 3 }, { key: '4', count: 2 }])
    expect(await likes().top({ limit: 1, bigint: true })).toEqual([{ key: '3', count: 23n }])
    // Longer than 240 of the narrow buckets, and shorter than a wide one.
    expect(await likes().top({ window: { from: day.from, to: at('2024-01-31T14:00') } })).toEqual([{ key: '2', count: 3 }, { key: '1', count: 2 }])
    expect(await likes().top({ window: { from: at('2024-01-31T23:00') }, limit: 3 })).toEqual([{ key: '3', count: 23 }, { key: '4', count: 2 }, { key: '1', count: 1 }])
    expect(await likes().top({ window: '90 minutes' })).toEqual([{ key: '3', count: 20 }, { key: '4', count: 2 }])
    const keysWhere = async (where: Record<string, string | number | bigint | boolean | null>) => (await likes().top({ where })).map(({ key }) => key)
    expect(await keysWhere({ category_id: 7 })).toEqual(['1', '2'])
    expect(await keysWhere({ category_id: 8n, open: true })).toEqual(['3', '4'])
    expect(await keysWhere({ kind: "a' or true --" })).toEqual([])
    expect(await keysWhere({ kind: null })).toEqual(['4'])
    expect(await keysWhere({ When: '2024-01-01' })).toEqual(['1'])
  })

  test('trending: by half-life and against a baseline', async () => {
    const [six, one] = [await likes().trending(), await likes().trending({ halfLife: '60 minutes', limit: 1 })]
    expect(six.slice(0, 2)).toEqual([{ key: '3', score: expect.closeTo(20 + 2 ** (-2 / 6) + 2 ** (-3 / 6) + 2 ** (-4 / 6), 0) }, { key: '4', score: expect.closeTo(2, 0) }])
    expect(one).toEqual([{ key: '3', score: expect.closeTo(20.4, 0) }])
    expect((await likes().trending({ where: { kind: null } })).map(({ key }) => key)).toEqual(['4'])
    // An hour has sixty buckets, so what is of now is in the last hour also a minute later.
    expect(await likes().trending({ baseline: { window: '1 hour' } })).toEqual([{ key: '3', score: expect.closeTo((20 - 3 / 24) / Math.sqrt(3 / 24 + 1)), count: 20, expected: 3 / 24 }])
    expect(await likes().trending({ baseline: { window: '1 hour', windows: 6, minCount: 1 }, where: { category_id: 8 }, limit: 2 })).toEqual([
      { key: '3', score: expect.any(Number), count: 20, expected: 3 / 6 },
      { key: '4', score: 2, count: 2, expected: 0 },
    ])
  })

  test('on the executor given, and whatever its type parsers are', async () => {
    const kysely = new Kysely<unknown>({ dialect: new PostgresDialect({ pool: db.pool }), plugins: [new CamelCasePlugin()] })
    await using others = Object.assign(
      new pg.Pool({ connectionString: db.connectionString, types: { getTypeParser: () => (text: unknown) => text } as unknown as pg.CustomTypesConfig }),
      { [Symbol.asyncDispose]: async () => others.end() },
    )
    const asked: string[] = []
    const client = { query: (text: string, values?: unknown[]) => (asked.push(text), db.pool.query(text, values)) }
    for (const executor of [kysely, others, client]) {
      expect(await likes().series(1, { ...day, executor })).toEqual(ofDay)
      expect(await likes().top({ limit: 1, window: { from: day.from }, executor })).toEqual([{ key: '3', count: 23 }])
      expect(await likes().trending({ limit: 1, executor })).toEqual([{ key: '3', score: expect.any(Number) }])
      expect(await likes().trending({ baseline: { window: '1 hour' }, executor })).toEqual([{ key: '3', score: expect.any(Number), count: 20, expected: 0.125 }])
    }
    expect(asked).toHaveLength(4)
    const elsewhere = createTally({ pool: others }).counter('likes')
    expect(await elsewhere.top({ limit: 1, bigint: true })).toEqual([{ key: '3', count: 23n }])
  })
})

describe('errors', () => {
  const untyped = () => tally.counter('likes') as unknown as Record<'series' | 'top' | 'trending', (...args: unknown[]) => Promise<unknown>>
  const cases: [what: string, call: () => Promise<unknown>, code: PgtallyError['code'], says: RegExp][] = [
    ['no such counter', () => tally.counter('none').top(), 'NOT_FOUND', /"none"/],
    ['no such counter', () => tally.counter('none').series(1, { width: '1 hour' }), 'NOT_FOUND', /"none"/],
    ['no such counter', () => tally.counter('none').trending(), 'NOT_FOUND', /"none"/],
    ['no ranking', () => tally.counter('plain').top(), 'NOT_APPLICABLE', /"plain".*ranking/],
    ['no buckets', () => tally.counter('plain').top({ window: '1 hour' }), 'NOT_APPLICABLE', /"plain".*buckets/],
    ['no buckets', () => tally.counter('plain').series(1, { width: '1 hour' }), 'NOT_APPLICABLE', /"plain".*buckets/],
    ['no buckets', () => tally.counter('plain').trending({ baseline: { window: '1 hour' } }), 'NOT_APPLICABLE', /"plain".*buckets/],
    ['no half-lives', () => tally.counter('plain').trending(), 'NOT_APPLICABLE', /"plain"/],
    ['no such half-life', () => likes().trending({ halfLife: '2 hours' }), 'NOT_APPLICABLE', /02:00:00.*06:00:00/],
    ['a width that no bucket divides', () => likes().series(1, { width: '90 seconds' }), 'NOT_APPLICABLE', /00:01:30.*00:01:00/],
    ['a width that is none', () => likes().series(1, { width: 'hourly' }), 'INVALID_ARGUMENT', /"hourly".*'1 hour'/],
    ['a window that is none', () => likes().top({ window: 'today' }), 'INVALID_ARGUMENT', /"today".*'1 hour'/],
    ['a half-life that is none', () => likes().trending({ halfLife: '' }), 'INVALID_ARGUMENT', /'1 hour'/],
    ['a date that is none', () => likes().series(1, { width: '1 hour', from: new Date('x') }), 'INVALID_ARGUMENT', /from.*Invalid Date/],
    ['a date that no server knows', () => likes().series(1, { width: '1 hour', to: new Date('+275000-01-01') }), 'INVALID_ARGUMENT', /275000/],
    ['a window without a beginning', () => untyped().top({ window: {} }), 'INVALID_ARGUMENT', /window\.from/],
    ['a date that is a text', () => untyped().top({ window: { from: '2024-01-01' } }), 'INVALID_ARGUMENT', /window\.from.*2024-01-01/],
    ['times the wrong way round', () => likes().series(1, { width: '1 hour', from: day.to, to: day.from }), 'INVALID_DEFINITION', /before/],
    ['too many buckets', () => likes().series(1, { width: '1 minute', from: day.from }), 'INVALID_DEFINITION', /10000/],
    ['a limit of 0', () => likes().top({ limit: 0 }), 'INVALID_DEFINITION', /limit/],
    ['a limit of 10,001', () => likes().trending({ limit: 10_001 }), 'INVALID_DEFINITION', /limit/],
    ['half a limit', () => likes().top({ limit: 1.5 }), 'INVALID_ARGUMENT', /limit is 1\.5/],
    ['a limit that is none', () => untyped().trending({ limit: 'all' }), 'INVALID_ARGUMENT', /limit is all/],
    ['half a window', () => likes().trending({ baseline: { window: '1 hour', windows: 0.5 } }), 'INVALID_ARGUMENT', /windows is 0\.5/],
    ['no windows', () => likes().trending({ baseline: { window: '1 hour', windows: 0 } }), 'INVALID_DEFINITION', /windows/],
    ['half-life and baseline', () => untyped().trending({ halfLife: '6 hours', baseline: { window: '1 hour' } }), 'INVALID_ARGUMENT', /one of them/],
    ['no such column', () => likes().top({ where: { category: 7 } }), 'INVALID_DEFINITION', /posts.*"category"/],
    ['a value that is undefined', () => untyped().top({ where: { category_id: undefined } }), 'INVALID_ARGUMENT', /where\.category_id/],
    ['a value that is an object', () => untyped().top({ where: { category_id: { a: 1 } } }), 'INVALID_ARGUMENT', /where\.category_id/],
    ['a value that is no number', () => likes().top({ where: { category_id: Number.NaN } }), 'INVALID_ARGUMENT', /where\.category_id/],
    ['no key', () => untyped().series(null, { width: '1 hour' }), 'INVALID_EVENT', /null/],
  ]
  test.each(cases)('%s', async (_, call, code, says) => {
    expect(await outcome(call())).toMatchObject({ name: 'PgtallyError', code, message: expect.stringMatching(says) })
  })

  test('a count beyond what a number can hold', async () => {
    await tally.createCounter('huge', { keyType: 'text', buckets: [{ width: '1 hour', retain: 'forever' }], ranking: true })
    await tally.counter('huge').add(db.pool, 'a', 2n ** 60n)
    await tally.drain()
    const huge = tally.counter('huge')
    for (const call of [() => huge.top(), () => huge.top({ window: '1 day' }), () => huge.series('a', { width: '1 hour' })]) await expect(call()).rejects.toMatchObject({ code: 'UNSAFE_COUNT' })
    expect(await huge.top({ bigint: true })).toEqual([{ key: 'a', count: 2n ** 60n }])
    expect((await huge.series('a', { width: '1 hour', bigint: true })).at(-1)?.count).toBe(2n ** 60n)
  })
})

describe('the command line', () => {
  const cli = (...args: string[]) => here(db.connectionString, ...args)
  const succeeded = { code: 0, stderr: '' }

  test('counter create', async () => {
    const create = ['counter', 'create', 'made', '--source', 'likes', '--source-key', 'post_id', '--source-time', 'created_at', '--target', 'posts', '--target-key', 'id', '--target-column', 'other_count']
    const rest = ['--bucket', '1 minute:forever', '--bucket', '1 day:forever@Europe/Berlin', '--ranking', '--half-life', '6h', '--half-life', '1 hour']
    expect(await cli(...create, ...rest, '--no-backfill')).toMatchObject({ ...succeeded, stdout: expect.stringContaining('Created') })
    expect(await tally.createCounter('made', { ...definition, target: { table: 'posts', key: 'id', column: 'other_count' } }, { backfill: false })).toBe(false)
    await tally.dropCounter('made')
    expect(await cli(...create, '--bucket', '7 minutes:forever')).toMatchObject({ code: 2, stderr: expect.stringMatching(/7 minutes.*divide/) })
  })

  test('top', async () => {
    expect(await cli('top', 'likes')).toEqual({ ...succeeded, stdout: expect.stringMatching(/^ key +count \n 3 +23 \n 1 +5 \n 2 +3 \n 4 +2 \n$/) })
    expect(JSON.parse((await cli('top', 'likes', '--json', '--limit', '1')).stdout)).toEqual([{ key: '3', count: 23 }])
    expect(JSON.parse((await cli('top', 'likes', '--json', '--window', '90m', '--where', 'kind=a', '--where', 'category_id=8')).stdout)).toEqual([{ key: '3', count: 20 }])
    expect(JSON.parse((await cli('top', 'likes', '--json', '--where', 'kind=a=b')).stdout)).toEqual([{ key: '2', count: 3 }])
    expect(await cli('top', 'likes', '--where', 'category_id=9')).toEqual({ ...succeeded, stdout: 'There is no key with a count.\n' })
    expect(await cli('top', 'plain')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('ranking') })
  })

  test('trending', async () => {
    expect(await cli('trending', 'likes', '--limit', '2')).toEqual({ ...succeeded, stdout: expect.stringMatching(/^ key +score \n 3 +2\d\.\d \n 4 +\d\.\d \n$/) })
    expect(JSON.parse((await cli('trending', 'likes', '--half-life', '1h', '--json', '--limit', '1')).stdout)).toEqual([{ key: '3', score: expect.any(Number) }])
    const baseline = ['trending', 'likes', '--baseline', '1h', '--windows', '6', '--min-count', '2']
    expect(await cli(...baseline)).toEqual({ ...succeeded, stdout: expect.stringMatching(/^ key +score +count +expected \n 3 +15\.9 +20 +0\.5 \n 4 +2\.0 +2 +0\.0 \n$/) })
    expect(JSON.parse((await cli(...baseline, '--json')).stdout)).toMatchObject([{ key: '3', count: 20, expected: 0.5 }, { key: '4', count: 2, score: 2 }])
    expect(await cli(...baseline, '--where', 'category_id=7')).toEqual({ ...succeeded, stdout: 'Nothing is trending.\n' })
  })

  test('series', async () => {
    const hours = ['--from', '2024-01-31T09:00Z', '--to', '2024-01-31T13:00Z']
    expect(JSON.parse((await cli('series', 'likes', '1', '--width', '1h', ...hours, '--json')).stdout)).toEqual(ofDay.map(({ start, count }) => ({ start: start.toISOString(), count })))
    const { stdout } = await cli('series', 'likes', '2', '--width', '30 minutes', ...hours)
    const lines = stdout.split('\n').slice(0, -1)
    expect(lines.map((line) => line.trimEnd().replaceAll(/ {2,}/g, '  '))).toEqual([
      ' from (UTC)  count', ' 2024-01-31 09:00  0', ' 2024-01-31 09:30  0', ' 2024-01-31 10:00  0', expect.stringMatching(/^ 2024-01-31 10:30 {2}3 {2}█{51}$/),
      ' 2024-01-31 11:00  0', ' 2024-01-31 11:30  0', ' 2024-01-31 12:00  0', ' 2024-01-31 12:30  0',
    ])
    expect(new Set(lines.map((line) => line.length))).toEqual(new Set([80]))
    expect(await cli('series', 'likes', '1', '--width', '1 month', '--from', '2024-01-01T00:00+01:00', '--to', '2024-02-29')).toMatchObject({ ...succeeded, stdout: expect.stringMatching(/2023-12-31 23:00 +4 .*2024-01-31 23:00 +1 /s) })
    expect(await cli('series', 'likes', '1', '--width', '90s')).toMatchObject({ code: 1, stderr: expect.stringContaining('00:01:30') })
  })
})

test('status says since when buckets are kept, what came too late for them and what lay ahead', async () => {
  await db.pool.query('create table visits (page int, at timestamptz)')
  const buckets = [{ width: '1 hour', retain: '2 days' }, { width: '1 month', retain: 'forever', timeZone: 'Asia/Tokyo' }]
  await tally.createCounter('visits', { source: { table: 'visits', key: 'page', time: 'at' }, buckets })
  await db.pool.query(`insert into visits select 1, now() + t from unnest('{-10 days, -9 days, 0 days, 1 day, 2 days, 3 days, 4 days}'::interval[]) t; insert into visits values (1, null)`)
  await tally.drain()
  const visits = (await tally.status()).counters.find(({ name }) => name === 'visits')
  expect(visits).toMatchObject({
    pendingEvents: 0, events: 8, lateEvents: 3, futureEvents: 4, problems: [],
    buckets: [{ width: '01:00:00', retain: '2 days', timeZone: null, view: expect.stringMatching(/^pgtally\.buckets_\d+_1$/) }, { width: '1 mon', retain: null, timeZone: 'Asia/Tokyo', since: null }],
  })
  // To the end of a slot, which is what is emptied: at least what was asked for.
  const since = visits?.buckets[0]?.since ?? ''
  expect(Date.now() - Date.parse(since)).toBeGreaterThanOrEqual(2 * 24 * 3_600_000)
  const { stdout } = await here(db.connectionString, 'status')
  expect(stdout.replaceAll(/ {2,}/g, '  ')).toContain(` visits  01:00:00  2 days  -  ${since.slice(0, 16).replace('T', ' ')}  3  4 \n visits  1 mon  forever  Asia/Tokyo  -`)
  await tally.dropCounter('visits')
})

test('dropped with the counter', async () => {
  await tally.createCounter('gone', { keyType: 'text', buckets: definition.buckets, ranking: true, trending: definition.trending })
  await tally.dropCounter('gone')
  expect(await value(db.pool, `select count(*)::int from pgtally.bucket_status() where counter = 'gone'`)).toBe(0)
})
