import { beforeAll, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, installed, outcome, pid, value } from './support/fixtures.ts'
import { beside, type Background } from './support/storm.ts'
import { auditRows, correctAll, createCounterBySql, createTimedBlog, settle, soon, timeViolations, type TimedBlog } from './support/times.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const counterId = (counter: string) => value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])
const like = (blog: TimedBlog, likes = 60) =>
  db.pool.query(`insert into ${blog.likes} (post_id, at) select 1 + floor(random() * 10), now() - random() ^ 3 * interval '3 days' from generate_series(1, $1)`, [likes])

async function wrong(counter: string): Promise<unknown[]> {
  await settle(db.pool, counter)
  return [...(await timeViolations(db.pool, counter)), ...(await auditRows(db.pool, counter))]
}

/** Writers that move likes in time and from post to post, without ever waiting for one another. */
function writers({ likes }: TimedBlog, count = 2): Background[] {
  const some = `select id from ${likes} where id % 7 = floor(random() * 7) limit 9 for update skip locked`
  const acts = [
    `insert into ${likes} (post_id, at) select 1 + floor(random() * 10), now() - random() ^ 3 * interval '3 days' from generate_series(1, 20)`,
    `insert into ${likes} (post_id, at) select 1 + floor(random() * 10), now() from generate_series(1, 3)`,
    `update ${likes} set at = at - interval '47 minutes' where id in (${some})`,
    `update ${likes} set post_id = 11 - post_id where id in (${some})`,
    `delete from ${likes} where id in (${some})`,
  ]
  return Array.from({ length: count }, (_, n) => {
    let round = n
    return beside(() => db.pool.query(acts[round++ % acts.length] ?? ''))
  })
}

/** Whatever may be tried again is. */
const calling = (statement: string) =>
  beside(() =>
    db.pool.query(statement).catch((error: { code?: string }) => {
      if (error.code !== '55P03') throw error
    }),
  )

test('an audit says which bucket or score drifts, also with events pending, and a reconciliation mends just that', async () => {
  const blog = await createTimedBlog(db, { buckets: [{ width: '1 hour', retain: 'forever' }, { width: '1 day', retain: '30 days', time_zone: 'Asia/Kolkata' }], halfLives: ['1 day'] })
  const { counter } = blog
  await like(blog, 300)
  await applyAll(db.pool, counter)
  await like(blog, 50)
  await applyAll(db.pool, counter)
  const id = await counterId(counter)
  expect(await auditRows(db.pool, counter)).toEqual([])
  const damages: [sql: string, part: RegExp, key: string][] = [
    [`delete from pgtally.bucket_${id}_1 where (start, key) = (select start, key from pgtally.bucket_${id}_1 where key = 4 and count <> 0 limit 1)`, /^bucket of 01:00:00 from /, '4'],
    [`update pgtally.bucket_${id}_2 set count = count + 2 where (start, key, slot) = (select start, key, slot from pgtally.bucket_${id}_2 where key = 5 limit 1)`, /^bucket of 1 day from /, '5'],
    [`insert into pgtally.bucket_${id}_1 (start, key, count, slot) values (date_bin('1 hour', now() - interval '90 days', '2000-01-01'), 6, 1, 0)`, /^bucket of 01:00:00 from /, '6'],
    [`update pgtally.recent_${id} set count_1 = count_1 - 1 where key = 7`, /^bucket of 01:00:00 from /, '7'],
    [`update pgtally.recent_${id} set score_1 = score_1 * 1.001 where key = 8`, /^score with half-life 1 day/, '8'],
    [`update pgtally.recent_${id} set landmark_1 = landmark_1 + 1 where key = 9`, /^score with half-life 1 day/, '9'],
  ]
  for (const [sql] of damages) expect((await db.pool.query(sql)).rowCount).toBe(1)
  await like(blog, 20)
  const found = await auditRows(db.pool, counter)
  expect(found.map(({ key, part }) => [key, part])).toEqual(damages.map(([, part, key]) => [key, expect.stringMatching(part)]))
  const { drifting_keys: drifting } = (await db.pool.query('select drifting_keys::int from pgtally.audit_keys($1, $2)', [counter, ['3', '4', '5', '8']])).rows[0]
  expect(drifting).toBe(3)
  // Batches between do not hide it, and one key does not mend another.
  await settle(db.pool, counter)
  await db.pool.query('select pgtally.reconcile_keys($1, $2)', [counter, ['4', '8']])
  expect((await auditRows(db.pool, counter)).map(({ key }) => key)).toEqual(['5', '6', '7', '9'])
  await correctAll(db.pool, counter)
  expect(await wrong(counter)).toEqual([])
  // A whole row of the latest counts, and everything.
  await db.pool.query(`delete from pgtally.recent_${id} where key in (1, 2)`)
  expect(new Set((await auditRows(db.pool, counter)).map(({ key }) => key))).toEqual(new Set(['1', '2']))
  await correctAll(db.pool, counter)
  expect(await wrong(counter)).toEqual([])
  await db.pool.query(`truncate pgtally.recent_${id}, pgtally.bucket_${id}_1, pgtally.bucket_${id}_2`)
  await like(blog, 20)
  await correctAll(db.pool, counter)
  expect(await wrong(counter)).toEqual([])
  // The ranking, so that a list has the wrong count, or not the key at all.
  await settle(db.pool, counter)
  await db.pool.query(`update pgtally.rank_${id} set value = value + 1 where key = 3; delete from pgtally.rank_${id} where key = 10`)
  expect((await auditRows(db.pool, counter)).map(({ key, part }) => [key, part])).toEqual([['10', 'ranking'], ['3', 'ranking']])
  await correctAll(db.pool, counter)
  expect(await wrong(counter)).toEqual([])
})

test('what a clock has done that was days ahead for a while is mended', async () => {
  const blog = await createTimedBlog(db, { buckets: null, halfLives: ['1 minute'] })
  await like(blog, 100)
  await db.pool.query(`insert into ${blog.likes} (post_id, at) select n, now() from generate_series(1, 10) n`)
  await settle(db.pool, blog.counter)
  const recent = `pgtally.recent_${await counterId(blog.counter)}`
  // Written when the clock was ahead: what had happened by then was long ago, or that of the clock itself.
  await db.pool.query(`update ${recent} set landmark_1 = landmark_1 + 3000, score_1 = case when key = 1 then 0 when key = 2 then 1e-200 else score_1 end where key < 4; update ${recent} set landmark_1 = landmark_1 + 100 where key = 4`)
  expect((await auditRows(db.pool, blog.counter)).map(({ key }) => key)).toEqual(['1', '2', '3', '4'])
  expect(await value(db.pool, 'select count(*)::int from pgtally.trending($1)', [blog.counter])).toBeGreaterThan(5)
  // The first time takes away what is absurd, beside which nothing else can be seen.
  await correctAll(db.pool, blog.counter)
  await correctAll(db.pool, blog.counter)
  expect(await wrong(blog.counter)).toEqual([])
})

test('what is damaged is mended exactly once while writers, workers, other reconciliations and expiry go on', async () => {
  const blog = await createTimedBlog(db, { buckets: [{ width: '1 second', retain: '3 seconds' }, { width: '1 minute', retain: '2 hours' }, { width: '1 hour', retain: 'forever' }], halfLives: ['1 minute', '1 day'] })
  const { counter } = blog
  await like(blog, 200)
  await settle(db.pool, counter)
  const id = await counterId(counter)
  const running = [
    ...writers(blog),
    ...Array.from({ length: 2 }, () => calling(`select pgtally.apply_batch('${counter}', 200, 4)`)),
    calling(`select pgtally.apply_packed('${counter}')`),
    calling(`select pgtally.wait_for_carried('${counter}', '0', '100 milliseconds', true)`),
    calling(`select pgtally.expire_buckets('${counter}')`),
    calling(`call pgtally.reconcile('${counter}')`),
    calling(`select pgtally.reconcile_keys('${counter}', '{3,4,5}')`),
    calling(`select count(*) from pgtally.top('${counter}', 10, now() - interval '1 hour'), pgtally.trending('${counter}')`),
  ]
  try {
    for (let round = 0; round < 3; round++) {
      const at = running.map(({ rounds }) => rounds)
      // One row at a time: several, in another order than the worker's, would be a deadlock.
      await db.pool.query(`delete from pgtally.bucket_${id}_3 where key = $1 and start = (select max(start) from pgtally.bucket_${id}_3 where key = $1)`, [1 + (round % 10)])
      await db.pool.query(`update pgtally.recent_${id} set score_1 = score_1 + 3, count_3 = count_3 + 1 where key = $1`, [10 - (round % 10)])
      await waitFor(async () => running.every((one, n) => one.rounds > (at[n] ?? 0)), { what: 'everybody to have had a turn' })
    }
  } finally {
    for (const one of running) await one.stop()
  }
  await correctAll(db.pool, counter)
  // Once more where a second comes to its end between two parts of the comparison.
  expect(await soon(async () => wrong(counter))).toEqual([])
})

test('a backfill while writers and workers go on counts each row into its bucket once', async () => {
  const blog = await createTimedBlog(db)
  await tally.dropCounter(blog.counter)
  await db.pool.query(`update ${blog.posts} set like_count = 0; truncate ${blog.likes}`)
  await like(blog, 3000)
  await like(blog, 3000)
  const name = `${blog.counter}_again`
  await createCounterBySql(db.pool, name, {
    source: `'${blog.likes}'`, source_key: `'post_id'`, source_time: `'at'`, target: `'${blog.posts}'`, target_key: `'id'`, target_column: `'like_count'`, ranking: 'true', half_lives: `'{1 hour}'`,
    buckets: `'[{"width": "1 minute", "retain": "1 day"}, {"width": "1 day", "retain": "forever", "time_zone": "Europe/Berlin"}]'`,
  })
  // A counter that follows its queue, in a table of pgtally's own, with buckets of its own.
  await createCounterBySql(db.pool, `${name}_follower`, { queue: `'${name}'`, key_type: `'bigint'`, half_lives: `'{30 minutes}'`, ranking: 'true', buckets: `'[{"width": "6 hours", "retain": "forever"}]'` })
  const running = [...writers(blog), calling(`select pgtally.apply_batch('${name}', 100)`), calling(`select pgtally.apply_batch('${name}_follower', 300)`)]
  try {
    for (const counter of [name, `${name}_follower`]) await db.pool.query(`do $$ declare id bigint := pgtally.begin_reconciliation('${counter}', false); after text; begin loop select last_key into after from pgtally.reconcile_range(id, 2); commit; exit when after is null; end loop; end $$`)
    await waitFor(async () => running.every(({ rounds }) => rounds > 5), { what: 'work beside the backfill' })
  } finally {
    for (const one of running) await one.stop()
  }
  for (const counter of [name, `${name}_follower`]) expect(await wrong(counter)).toEqual([])
})

test('a correction waits for the batch in hand, and what is dropped meanwhile is an error', async () => {
  const blog = await createTimedBlog(db)
  await like(blog)
  await applyAll(db.pool, blog.counter)
  const id = await counterId(blog.counter)
  await db.pool.query(`update pgtally.recent_${id} set count_1 = count_1 + 1 where key = 1`)
  const [worker, mender, dropper] = [await db.connect(), await db.connect(), await db.connect()]
  const pids = [await pid(mender), await pid(dropper)] as const
  await like(blog, 200)
  await worker.query('begin')
  await applyAll(worker, blog.counter)
  const mending = outcome(mender.query('select pgtally.reconcile_keys($1, $2)', [blog.counter, ['1']]))
  await blocked(db, pids[0])
  const dropping = outcome(dropper.query('select pgtally.drop_counter($1)', [blog.counter]))
  await blocked(db, pids[1])
  await worker.query('commit')
  expect([await mending, await dropping]).toEqual(['done', 'done'])
  expect(await value(db.pool, `select count(*)::int from pg_class where relname ~ '^(recent|rank|buckets?|carry)_${id}(_|$)'`)).toBe(0)
  for (const call of [`select pgtally.audit_range('${blog.counter}')`, `select * from pgtally.top('${blog.counter}')`, `select pgtally.expire_buckets('${blog.counter}')`]) expect(await outcome(db.pool.query(call))).toMatchObject({ code: 'TL001' })
})

test('a counter may be dropped while everybody works and reads; nobody gets a deadlock', async () => {
  const errors = new Set<string>()
  for (let round = 0; round < 2; round++) {
    const blog = await createTimedBlog(db, { buckets: [{ width: '1 second', retain: '2 seconds' }, { width: '1 minute', retain: '1 hour' }] })
    const { counter } = blog
    const trying = (statement: string) => beside(() => db.pool.query(statement).catch((error: { code?: string }) => errors.add(error.code ?? String(error))))
    const calls = [`apply_batch('${counter}')`, `expire_buckets('${counter}')`, `audit('${counter}')`, `top('${counter}', 10, now() - interval '1 minute')`, `trending('${counter}')`, `spikes('${counter}', 10, '1 minute', 3)`, `series('${counter}', '1', '1 minute')`, `reconcile_keys('${counter}', '{1,2}')`]
    const running = [...writers(blog, 1), ...calls.map((call) => trying(`select * from pgtally.${call}`))]
    try {
      await waitFor(async () => running.every(({ rounds }) => rounds > 1), { what: 'work' })
      await tally.dropCounter(counter)
    } finally {
      for (const one of running) await one.stop()
    }
  }
  // No such counter; or its tables went between two looks: undefined_table; 55P03 is "try again".
  for (const code of errors) expect(['TL001', '42P01', '55P03']).toContain(code)
})
