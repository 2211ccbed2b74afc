import { pipeline } from 'node:stream/promises'

import { from as copyFrom } from 'pg-copy-streams'
import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, installed, value, violations, type Session } from './support/fixtures.ts'
import { auditRows, createTimedBlog, settle, timeViolations, type TimedBlog } from './support/times.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** Counts, buckets, scores and ranking that are not what the rows say: by audits with events pending, and when everything is applied also by formulas of the test's own. */
async function wrong(counter: string): Promise<unknown[]> {
  const pending = await auditRows(db.pool, counter)
  await settle(db.pool, counter)
  return [...pending, ...(await timeViolations(db.pool, counter)), ...(await violations(db, counter)), ...(await auditRows(db.pool, counter))]
}

const uuids = Array.from({ length: 10 }, (_, index) => `5ac7e3b0-1111-4000-8000-00000000000${index}`)
const texts = ['', ' ', 'a', 'A', `it's`, '"q"', 'back\\slash', '100% %s %1$L', '{a,b}', 'NULL', 'new\nline', 'Ä']
const integers = ['-3', '-1', '0', '7', '32767', '1', '2', '3', '4', '5']
const keyTypes: [type: string, keys: string[]][] = [
  ['smallint', integers],
  ['integer', [...integers, '2147483647']],
  ['bigint', [...integers, '9223372036854775807']],
  ['uuid', uuids],
  ['text', texts],
  ['varchar(60)', texts],
]

describe.concurrent('buckets, scores and ranking are what the rows say', () => {
  for (const [keyType, keys] of keyTypes) {
    test(`after statements of every kind, with keys of the type ${keyType}`, async () => {
      const blog = await createTimedBlog(db, {
        keyType,
        keys,
        likesColumns: `, kind text default 'like', weight integer default 1, primary key (id)`,
        rest: { where_condition: `'kind = ''like'''`, sum_expression: `'weight'` },
      })
      const { likes, posts } = blog
      const insert = (selection: string) => db.pool.query(`insert into ${likes} (post_id, at, kind, weight) ${selection}`, [keys])
      const some = `select k::${keyType} from unnest($1::text[]) with ordinality u(k, n)`
      await insert(`select k::${keyType}, now() - n * interval '7 minutes', case when n % 4 = 0 then 'view' else 'like' end, n - 2 from unnest($1::text[]) with ordinality u(k, n)`)
      expect(await wrong(blog.counter)).toEqual([])
      await insert(`select k::${keyType}, now() - m * n * interval '31 minutes', 'like', 1 + m % 3 from unnest($1::text[]) with ordinality u(k, n), generate_series(0, 60) m`)
      for (const key of keys.slice(0, 3)) await db.pool.query(`insert into ${likes} (post_id, at) values ($1, now() - interval '1 second')`, [key])
      expect(await wrong(blog.counter)).toEqual([])

      await db.pool.query(`update ${likes} set post_id = $1 where id % 5 = 0`, [keys[1]])
      await db.pool.query(`update ${likes} set at = at - interval '90 seconds' where id % 7 = 0`)
      await db.pool.query(`update ${likes} set at = at - interval '200 days', weight = weight + 1 where id % 11 = 0`)
      await db.pool.query(`update ${likes} set kind = case kind when 'like' then 'view' else 'like' end where id % 13 = 0`)
      await db.pool.query(`update ${likes} set weight = weight where id % 2 = 0`)
      await db.pool.query(`update ${likes} set at = at + interval '1 microsecond'`)
      expect(await wrong(blog.counter)).toEqual([])

      await db.pool.query(`delete from ${likes} where id % 3 = 0`)
      await db.pool.query(`insert into ${likes} (id, post_id, at) overriding system value select l.id, l.post_id, l.at + interval '1 day' from ${likes} l where l.id % 8 = 1 on conflict (id) do update set at = excluded.at - interval '3 days'`)
      if ((await value<number>(db.pool, `select current_setting('server_version_num')::int`)) >= 150_000) {
        await db.pool.query(
          `merge into ${likes} l using (${some} where n < 6) g(key) on l.post_id = g.key when matched and l.id % 4 = 2 then delete when matched and l.id % 4 = 3 then update set at = at - interval '1 hour'`,
          [keys],
        )
        await db.pool.query(`merge into ${likes} l using (${some}) g(key) on false when not matched then insert (post_id, at) values (g.key, now() - interval '2 hours')`, [keys])
      }
      expect(await wrong(blog.counter)).toEqual([])

      await db.pool.query(`delete from ${posts} where id = $1`, [keys[2]])
      await db.pool.query(`delete from ${likes} where post_id = $1`, [keys[2]])
      expect(await wrong(blog.counter)).toEqual([])
      await db.pool.query(`truncate ${likes}`)
      expect(await wrong(blog.counter)).toEqual([])
      expect(await value(db.pool, `select count(*)::int from pgtally.trending($1)`, [blog.counter])).toBe(0)
      expect(await value(db.pool, `select count(*)::int from pgtally.top($1)`, [blog.counter])).toBe(0)
    })
  }

  test('of COPY, of cascades, with columns for consumers, with a key that is NULL', async () => {
    const { counter, posts, likes } = await createTimedBlog(db, { likesColumns: ', user_id integer', rest: { source_data: `'{user_id}'` } })
    await db.pool.query(`alter table ${likes} add foreign key (post_id) references ${posts} on update cascade on delete cascade`)
    const client = await db.connect()
    const lines = Array.from({ length: 300 }, (_, n) => `${n % 9 === 0 ? '\\N' : 1 + (n % 10)}\t2026-0${1 + (n % 9)}-10 0${n % 10}:${10 + (n % 50)}:07.5+00\t${n}\n`)
    await pipeline(lines, client.query(copyFrom(`copy ${likes} (post_id, at, user_id) from stdin`)))
    expect(await wrong(counter)).toEqual([])
    await db.pool.query(`update ${likes} set user_id = user_id + 1, at = at + interval '1 hour' where post_id = 1`)
    await db.pool.query(`delete from ${posts} where id in (2, 3)`)
    expect(await wrong(counter)).toEqual([])
    await db.pool.query(`truncate ${posts} cascade`)
    expect(await wrong(counter)).toEqual([])
  })

  test('of a partitioned source', async () => {
    const { counter, likes } = await createTimedBlog(db, { likesClauses: 'partition by range (post_id)', likesColumns: `, kind text` })
    await db.pool.query(`create table ${likes}_a partition of ${likes} for values from (0) to (5); create table ${likes}_b partition of ${likes} for values from (5) to (100)`)
    await db.pool.query('select pgtally.sync_triggers($1)', [counter])
    await tally.counter(counter).reconcile()
    await db.pool.query(`insert into ${likes} (post_id, at) select 1 + n % 10, now() - n * interval '17 minutes' from generate_series(1, 400) n`)
    await db.pool.query(`insert into ${likes}_b (id, post_id, at) overriding system value values (100000, 7, '2020-01-01')`)
    await db.pool.query(`update ${likes} set post_id = 11 - post_id where id % 4 = 0`)
    await db.pool.query(`update ${likes}_a set at = at - interval '1 day' where id % 3 = 0`)
    expect(await wrong(counter)).toEqual([])
    await db.pool.query(`truncate ${likes}_a`)
    expect(await wrong(counter)).toEqual([])
  })

  for (const timeType of ['timestamptz', 'timestamp']) {
    test(`with times of the type ${timeType} at the ends of what there is; none stops the counter`, async () => {
      const { counter, likes } = await createTimedBlog(db, {
        timeType,
        buckets: ['1 hour', '1 day', '1 week', '1 month', '1 year'].map((width, n) => ({ width, retain: 'forever', ...(n > 0 && { time_zone: 'America/New_York' }) })),
      })
      const insert = (key: number, at: string | null) => db.pool.query(`insert into ${likes} (post_id, at) values ($1, $2)`, [key, at])
      const odd = ['0001-01-01 00:00:00+00', '0001-01-01 06:30:00.5+00', '9999-12-31 23:59:59.99+00', '1969-12-31 23:59:59.9+00', '1900-02-28 12:00+00']
      const none = [null, 'infinity', '-infinity', '0001-12-31 23:59:59+00 BC', '4713-01-01 00:00+00 BC', '10000-01-01 00:00+00', '294276-12-31 23:59:59+00']
      for (const [n, at] of [...odd, ...none].entries()) await insert(1 + (n % 3), at)
      await applyAll(db.pool, counter)
      const status = async () => (await db.pool.query('select late_events::int, future_events::int, last_error from pgtally.counter_status() where name = $1', [counter])).rows[0]
      expect(await status()).toEqual({ late_events: none.length, future_events: 1, last_error: null })
      expect(await wrong(counter)).toEqual([])
      await insert(1, new Date().toISOString())
      expect(await wrong(counter)).toEqual([])
      await db.pool.query(`update ${likes} set at = '2000-02-29 12:00+00' where id % 2 = 0`)
      expect(await wrong(counter)).toEqual([])
      await db.pool.query(`delete from ${likes}`)
      expect(await wrong(counter)).toEqual([])
    })
  }

  const sessions = [
    [`set timezone = 'Asia/Kolkata'; set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'`, 'timestamptz'],
    [`set timezone = 'America/St_Johns'; set datestyle = 'German'; set intervalstyle = 'iso_8601'`, 'timestamp'],
    [`set timezone = '<odd>-13:45'; set datestyle = 'Postgres, MDY'; set intervalstyle = 'postgres_verbose'`, 'timestamptz'],
  ]
  for (const [settings = '', timeType = ''] of sessions) {
    test(`in sessions with ${settings}, and a ${timeType}`, async () => {
      const session = await db.connect()
      await session.query(settings)
      const { counter, likes } = await createTimedBlog(db, {
        timeType,
        buckets: ['1 second', '15 minutes', '1 day', '1 week', '1 month', '1 year'].map((width, n) => ({ width, retain: n === 1 ? '100 years' : 'forever', ...(n > 1 && { time_zone: 'Europe/Berlin' }) })),
      })
      const write = (by: Session, offset: number) =>
        by.query(`insert into ${likes} (post_id, at) select 1 + n % 10, timestamp '2026-03-20 00:10:07' + (n * 97 + $1) * interval '1 minute' from generate_series(1, 300) n`, [offset])
      await write(session, 0)
      await write(db.pool, 5)
      await settle(session, counter)
      expect(await timeViolations(db.pool, counter)).toEqual([])
      await session.query(`update ${likes} set at = at - interval '31 days 7 seconds' where id % 3 = 0`)
      await db.pool.query(`delete from ${likes} where id % 5 = 0`)
      expect(await auditRows(session, counter)).toEqual([])
      await settle(session, counter)
      expect(await auditRows(session, counter)).toEqual([])
      expect(await wrong(counter)).toEqual([])
      // Damaged, and mended by such a session.
      await db.pool.query(`delete from pgtally.bucket_${await counterId(counter)}_3 where key = 3`)
      await session.query('select pgtally.reconcile_keys($1, $2)', [counter, ['3']])
      await session.query('select pgtally.expire_buckets($1)', [counter])
      expect(await wrong(counter)).toEqual([])
    })
  }
})

const counterId = (counter: string) => value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])

describe('a bucket and its time', () => {
  /** The counts of a key in the buckets of a width, of those that are not 0. */
  async function counts({ counter }: TimedBlog, number: number, key = '1'): Promise<Record<string, number>> {
    const { rows } = await db.pool.query<{ start: string; count: number }>(
      `select to_char(start at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as start, count::int from pgtally.buckets_${await counterId(counter)}_${number} where key = $1 and count <> 0 order by 1`,
      [key],
    )
    return Object.fromEntries(rows.map(({ start, count }) => [start, count]))
  }

  test('an unlike takes back from the bucket of the like, whenever it comes, and older likes may come after newer', async () => {
    const blog = await createTimedBlog(db, { buckets: [{ width: '1 hour', retain: 'forever' }] })
    const act = async (sql: string) => {
      await db.pool.query(sql.replaceAll('likes', blog.likes))
      expect(await wrong(blog.counter)).toEqual([])
    }
    const likeAt = (at: string, key = 1) => act(`insert into likes (post_id, at) values (${key}, '2026-05-01 ${at}+00')`)
    await likeAt('10:59:59')
    await likeAt('10:00')
    await likeAt('12:30')
    expect(await counts(blog, 1)).toEqual({ '2026-05-01 10:00': 2, '2026-05-01 12:00': 1 })
    await likeAt('11:00')
    await likeAt('12:59:59.999')
    await likeAt('13:00', 2)
    await likeAt('12:05')
    expect(await counts(blog, 1)).toEqual({ '2026-05-01 10:00': 2, '2026-05-01 11:00': 1, '2026-05-01 12:00': 3 })
    await act(`delete from likes where at = '2026-05-01 10:00+00'`)
    await act(`insert into likes (post_id, at) select 1, t from generate_series(timestamptz '2026-05-01 09:00+00', '2026-05-01 14:00+00', '20 minutes') t`)
    await act(`delete from likes where at >= '2026-05-01 12:00+00' and post_id = 1`)
    expect(await counts(blog, 1)).toEqual({ '2026-05-01 09:00': 3, '2026-05-01 10:00': 4, '2026-05-01 11:00': 4 })
    // Comes and goes in one batch, in a bucket that nobody has yet.
    await act(`with new as (insert into likes (post_id, at) values (1, '2026-05-02 00:00+00') returning id) select from new; delete from likes where at = '2026-05-02 00:00+00'`)
    await act('delete from likes')
    expect(await counts(blog, 1)).toEqual({})
  })

  test('many batches in any order of time, cut and not, with sums below 0', async () => {
    const blog = await createTimedBlog(db, { likesColumns: ', weight integer', rest: { sum_expression: `'weight'` } })
    const random = (most: string) => `floor(random() * ${most})`
    for (let round = 0; round < 12; round++) {
      for (let n = 0; n < 6; n++) {
        await db.pool.query(`insert into ${blog.likes} (post_id, at, weight) select 1 + ${random('10')}, now() - ${random('3000')} * ${round} * interval '1 minute', ${random('9')} - 4 from generate_series(1, 12)`)
        await db.pool.query(`delete from ${blog.likes} where id % 5 = ${round % 5} and random() < 0.3`)
      }
      if (round % 3 === 0) await db.pool.query(`select pgtally.apply_batch($1, 20)`, [blog.counter])
      expect(await auditRows(db.pool, blog.counter)).toEqual([])
    }
    expect(await wrong(blog.counter)).toEqual([])
  })

  test('likes of the future are in their buckets and counted as future; none holds up anything', async () => {
    const blog = await createTimedBlog(db, { buckets: [{ width: '1 minute', retain: '2 hours' }, { width: '1 year', retain: 'forever' }] })
    await db.pool.query(
      `insert into ${blog.likes} (post_id, at) select k, now() + a from unnest(array[interval '2 minutes', '4 minutes', '20 minutes', '50 minutes', '70 minutes', '1 day', '3 years', '5000 years', '-1 minute']) a, generate_series(1, 3) k`,
    )
    await settle(db.pool, blog.counter)
    await db.pool.query(`insert into ${blog.likes} (post_id, at) values (1, now() + interval '70 minutes'), (1, now() - interval '1 day'), (2, now() - interval '200 minutes'), (3, now() - interval '100 minutes')`)
    await db.pool.query(`delete from ${blog.likes} where at > now() + interval '1 year' and post_id = 2`)
    await settle(db.pool, blog.counter)
    expect((await timeViolations(db.pool, blog.counter)).filter(({ part }) => !part.startsWith('score'))).toEqual([])
    expect(await auditRows(db.pool, blog.counter)).toEqual([])
    const { rows } = await db.pool.query('select late_events::int, future_events::int from pgtally.counter_status() where name = $1', [blog.counter])
    expect(rows).toEqual([{ late_events: 2, future_events: 21 }])
  })
})
