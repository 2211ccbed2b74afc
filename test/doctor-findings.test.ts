import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, applyAll, createBlog, installed, like, value, type Blog } from './support/fixtures.ts'
import { createPartitioned, cure, diagnose, find, findSoon, follow, troubles } from './support/patient.ts'
import { createRole, dropRoles, type TestRole } from './support/roles.ts'

let db: TestDatabase
let tally: Tally

const roles: TestRole[] = []

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
})
afterAll(async () => {
  await dropRoles(db, roles)
  await db.drop()
})

const queueId = (name: string, at = db) => value<number>(at.pool, 'select pgtally.queue_id($1)', [name])

/** As if all events of the queue had been written so much earlier, and batches finished. */
async function age(queue: string, interval: string, at = db): Promise<void> {
  const id = await queueId(queue, at)
  await at.pool.query(`update pgtally.event_${id} set ev_time = ev_time - interval '${interval}'`)
  await at.pool.query(`update pgtally.batch set finished_at = finished_at - interval '${interval}' where consumer_id in (select consumer_id from pgtally.consumer where queue_id = ${id})`)
}

describe('triggers', () => {
  let blog: Blog
  const name = () => `public.${blog.likes}`

  test('disabled, or for replicas only', async () => {
    blog = await createBlog(db, tally)
    await db.pool.query(`alter table ${blog.likes} disable trigger user`)
    await like(db.pool, blog, 1)
    const finding = await cure(db, { code: 'TRIGGER_DISABLED', name: name() })
    expect(finding.problem).toMatch(/are disabled \(.*insert.*\): rows that are written there are not counted/)
    expect(await tally.counter(blog.counter).get(1, { fresh: true })).toMatchObject({ count: 1 })
    await db.pool.query(`alter table ${blog.likes} enable replica trigger pgtally_${await queueId(blog.counter)}_delete`)
    expect((await cure(db, { code: 'TRIGGER_DISABLED', name: name() })).problem).toMatch(/fire on replicas only \(delete\)/)
    await db.pool.query(`alter table ${blog.likes} enable always trigger pgtally_${await queueId(blog.counter)}_delete`)
    expect(await find(db, { code: 'TRIGGER_DISABLED', name: name() })).toBeUndefined()
  })

  test('missing, one or all', async () => {
    const id = await queueId(blog.counter)
    await db.pool.query(`drop trigger pgtally_${id}_update on ${blog.likes}`)
    expect((await cure(db, { code: 'TRIGGER_MISSING', name: name() })).problem).toContain('(update)')
    for (const operation of ['insert', 'update', 'delete', 'truncate']) await db.pool.query(`drop trigger pgtally_${id}_${operation} on ${blog.likes}`)
    await cure(db, { code: 'TRIGGER_MISSING', name: name() })
    expect(await value(db.pool, `select count(*)::int from pg_trigger where tgrelid = '${blog.likes}'::regclass and tgname like 'pgtally%'`)).toBe(4)
  })

  test('of partitions that have come and gone', async () => {
    await createPartitioned(db, tally, 'parts')
    await db.pool.query('insert into parts_m2 values (1, 2); alter table parts_likes attach partition parts_m2 for values in (2)')
    await cure(db, { code: 'PARTITION_WITHOUT_TRIGGERS', name: 'public.parts_m2' })
    await db.pool.query('alter table parts_likes detach partition parts_m2')
    await cure(db, { code: 'TRIGGER_LEFT', name: 'public.parts_m2' })
    await db.pool.query('alter table parts_likes attach partition parts_m2 for values in (2)')
    expect(await value(db.pool, `select pgtally.sync_triggers('parts')`)).toBe(1)
    await cure(db, { code: 'PARTITIONS_NOT_COUNTED', name: 'parts' })
    expect(await tally.counter('parts').get(1, { fresh: true })).toMatchObject({ count: 1 })
  })

  test('that sessions of a role or database do not fire', async () => {
    const { role } = await createRole(db, roles)
    const database = new URL(db.connectionString).pathname.slice(1)
    await db.pool.query(`alter role ${role} set session_replication_role = replica`)
    await cure(db, { code: 'REPLICATION_ROLE', name: role })
    await db.pool.query(`alter role ${role} in database ${database} set session_replication_role = 'replica'`)
    await cure(db, { code: 'REPLICATION_ROLE', name: role })
    await db.pool.query(`alter database ${database} set session_replication_role = replica`)
    expect(await cure(db, { code: 'REPLICATION_ROLE', name: database })).toMatchObject({ level: 'error', subject: { kind: 'database' } })
  })
})

describe('definitions', () => {
  test('a backfill that was not done, or not ended', async () => {
    await db.pool.query('create table old_likes (post_id bigint); insert into old_likes values (1), (2)')
    await tally.createCounter('old', { source: { table: 'old_likes', key: 'post_id' } }, { backfill: false })
    await cure(db, { code: 'BACKFILL_MISSING', name: 'old' })
    await db.pool.query(`insert into pgtally.reconciliation (counter_id, reason, after_key) select counter_id, 'backfill', '1' from pgtally.counter where name = 'old'`)
    expect(await cure(db, { code: 'RECONCILE_UNFINISHED', name: 'old' })).toMatchObject({ level: 'warning' })
    await tally.dropCounter('old')
  })

  for (const [code, change] of [
    ['SOURCE_DROPPED', ({ likes }: Blog) => `drop table ${likes}`],
    ['SOURCE_CHANGED', ({ likes }: Blog) => `alter table ${likes} rename post_id to post`],
    ['TARGET_DROPPED', ({ posts }: Blog) => `drop table ${posts} cascade`],
    ['TARGET_CHANGED', ({ posts }: Blog) => `alter table ${posts} drop like_count`],
  ] as const) {
    test(`${code}`, async () => {
      const blog = await createBlog(db, tally)
      await db.pool.query(change(blog))
      expect(await cure(db, { code, name: blog.counter })).toMatchObject({ level: 'error' })
    })
  }

  test('TARGET_KEY_NOT_UNIQUE', async () => {
    const blog = await createBlog(db, tally)
    await db.pool.query(`alter table ${blog.posts} drop constraint ${blog.posts}_pkey cascade`)
    await cure(db, { code: 'TARGET_KEY_NOT_UNIQUE', name: blog.counter })
    // A column that is gone as well is what comes first.
    await db.pool.query(`drop index ${blog.posts}_id_idx; alter table ${blog.posts} rename like_count to n`)
    expect(await cure(db, { code: 'TARGET_CHANGED', name: blog.counter })).toMatchObject({ level: 'error' })
  })

  test('positions of another cluster', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1)
    await db.pool.query('update pgtally.consumer set system_identifier = system_identifier + 1 where queue_id = $1', [await queueId(blog.counter)])
    const finding = await cure(db, { code: 'OTHER_CLUSTER' })
    expect(finding.problem).toContain(blog.counter)
    await applyAll(db.pool, blog.counter)
    expect(await tally.counter(blog.counter).get(1)).toBe(1)
  })
})

describe('the target', () => {
  test('of integer, nearly full: found among the newest events, in statistics, or in an index', async () => {
    const recent = await createBlog(db, tally, { countColumn: 'like_count int not null default 0' })
    await db.pool.query(`update ${recent.posts} set like_count = 2000000000 where id = 3`)
    expect(await find(db, { code: 'TARGET_NEARLY_FULL', name: recent.counter })).toBeUndefined()
    await like(db.pool, recent, 3)
    expect((await cure(db, { code: 'TARGET_NEARLY_FULL', name: recent.counter })).problem).toMatch(/is 2,000,000,000 \(.*newest events.*\), 93 % of what integer can hold/)

    const analyzed = await createBlog(db, tally, { countColumn: 'like_count smallint not null default 0' })
    await db.pool.query(`update ${analyzed.posts} set like_count = 10000 * id where id < 3; analyze ${analyzed.posts}`)
    await cure(db, { code: 'TARGET_HALF_FULL', name: analyzed.counter })

    const indexed = await createBlog(db, tally, { countColumn: 'like_count int not null default 0' })
    await db.pool.query(`update ${indexed.posts} set like_count = 2147483647 where id = 3; create index on ${indexed.posts} (like_count)`)
    expect((await cure(db, { code: 'TARGET_NEARLY_FULL', name: indexed.counter })).problem).toMatch(/\(the largest\), 100 %/)
    await cure(db, { code: 'TARGET_COLUMN_INDEXED', name: indexed.counter })
  })

  for (const [what, index] of [
    ['one of several columns', 'create index on TABLE (title, like_count)'],
    ['in an expression', 'create index on TABLE ((like_count + 1))'],
    ['in the condition', 'create index on TABLE (title) where like_count > 10'],
    ['included', 'create index on TABLE (title) include (like_count)'],
    ['of a constraint', 'alter table TABLE add constraint "unique, of all things" unique (like_count, id)'],
  ] as const) {
    test(`whose counted column is indexed: ${what}`, async () => {
      const blog = await createBlog(db, tally)
      await db.pool.query(index.replace('TABLE', blog.posts))
      await cure(db, { code: 'TARGET_COLUMN_INDEXED', name: blog.counter })
      await db.pool.query(`create index on ${blog.posts} (title)`)
      expect(await find(db, { code: 'TARGET_COLUMN_INDEXED', name: blog.counter })).toBeUndefined()
    })
  }

  test('that is partitioned, with an index on the counted column', async () => {
    await db.pool.query(`
      create table split (id bigint primary key, n bigint not null default 0) partition by hash (id);
      create table split_0 partition of split for values with (modulus 2, remainder 0);
      create table split_1 partition of split for values with (modulus 2, remainder 1);
      create index on split (n); create index only_one on split_1 (n)`)
    await tally.createCounter('split', { keyType: 'bigint', target: { table: 'split', key: 'id', column: 'n' } })
    const { findings } = await diagnose(db)
    expect(findings.filter(({ code, subject }) => code === 'TARGET_COLUMN_INDEXED' && subject.name === 'split').flatMap(({ remedy }) => remedy.slice(1))).toEqual([
      { sql: 'DROP INDEX CONCURRENTLY public.only_one;' },
      { sql: 'DROP INDEX public.split_n_idx;' },
    ])
    await db.pool.query('drop index only_one')
    await cure(db, { code: 'TARGET_COLUMN_INDEXED', name: 'split' })
  })

  test('whose full pages leave no room, and whose dead rows are many', async () => {
    const blog = await createBlog(db, tally, { posts: 400 })
    // A page is filled by each: nothing fits beside.
    await db.pool.query(`alter table ${blog.posts} set (autovacuum_enabled = off), alter title set storage plain; update ${blog.posts} set title = repeat('x', 6000)`)
    await cure(db, { code: 'TARGET_NOT_HOT', name: `public.${blog.posts}`, limits: { updates: 100 } })
    await cure(db, { code: 'DEAD_ROWS', name: `public.${blog.posts}`, limits: { deadRows: 100 } })
    expect(await cure(db, { code: 'TABLE_AUTOVACUUM_OFF', name: `public.${blog.posts}` })).toMatchObject({ level: 'warning' })
  })
})

describe('the source', () => {
  test('without an index on its key, when it is large', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 300)
    expect(await find(db, { code: 'SOURCE_KEY_NOT_INDEXED', name: `public.${blog.likes}` })).toBeUndefined()
    await cure(db, { code: 'SOURCE_KEY_NOT_INDEXED', name: `public.${blog.likes}`, limits: { sourceBytes: 10_000 } })
  })

  test('the same, partitioned', async () => {
    await createPartitioned(db, tally, 'unindexed')
    await db.pool.query('insert into unindexed_likes select 1, 1 from generate_series(1, 500)')
    const { remedy } = await cure(db, { code: 'SOURCE_KEY_NOT_INDEXED', name: 'public.unindexed_likes', limits: { sourceBytes: 10_000 } })
    expect(remedy).toContainEqual({ sql: 'CREATE INDEX CONCURRENTLY ON public.unindexed_m1 (post_id);\nCREATE INDEX ON public.unindexed_likes (post_id);' })
  })
})

describe('progress', () => {
  test('no worker; one counter stuck, slow, or failing', async () => {
    await using own = await createTestDatabase()
    const ownTally = await installed(own)
    // Events are made hours old here, and their slots not overdue.
    const rest = { rotationPeriodMs: 3_600_000 }
    const [one, other] = [await createBlog(own, ownTally, { rest }), await createBlog(own, ownTally, { rest })]
    const back = (blog: Blog) => age(blog.counter, '10 minutes', own)
    const codes = async () => troubles(await diagnose(own)).map(({ code, subject }) => `${code} ${subject.name}`)

    for (const blog of [one, other]) await like(own.pool, blog, 1)
    expect(await codes()).toEqual([])
    for (const blog of [one, other]) await back(blog)
    const finding = await cure(own, { code: 'WORKER_NOT_RUNNING' }, /drain/)
    expect(finding.problem).toMatch(new RegExp(`waited for 10 minutes.*\\(${one.counter}, ${other.counter}\\)`))
    expect(finding.remedy).toContainEqual({ command: 'pgtally worker' })
    expect(await codes()).toEqual([])

    await like(own.pool, one, 1)
    await back(one)
    expect(await cure(own, { code: 'COUNTER_STUCK', name: one.counter })).toMatchObject({ level: 'error' })

    await like(own.pool, one, 1)
    await own.pool.query(`update pgtally.event_1 set ev_time = ev_time - interval '10 minutes'`)
    expect(await codes()).toEqual([`COUNTER_LAGS ${one.counter}`])
    const worker = ownTally.worker()
    await waitFor(async () => (await codes()).length === 0, { what: 'the backlog to be worked off' })

    await own.pool.query(`alter table ${other.posts} add constraint few check (like_count < 3)`)
    await like(own.pool, other, 2, 5)
    const failing = await findSoon(own, { code: 'COUNTER_FAILING', name: other.counter })
    expect(failing).toMatchObject({ level: 'error', problem: expect.stringMatching(/violates check constraint "few".*other counters go on/s) })
    // Its events are old, but it is clear why; and the worker is there.
    await own.pool.query(`update pgtally.event_2 set ev_time = ev_time - interval '10 minutes'`)
    expect(await codes()).toEqual([`COUNTER_FAILING ${other.counter}`])
    await worker.stop()
    await own.pool.query(`alter table ${other.posts} drop constraint few`)
    await cure(own, { code: 'COUNTER_FAILING', name: other.counter })
  })

  test('consumers that lag, are paused or fail', async () => {
    const { counter: queue } = await createBlog(db, tally)
    for (const consumer of ['late', 'paused one', 'failing']) await tally.queue(queue).register(consumer)
    await db.pool.query(`select pgtally.pause_consumer($1, 'paused one')`, [queue])
    expect(await find(db, { code: 'CONSUMER_PAUSED', name: `${queue} paused one` })).toBeUndefined()
    await db.pool.query(`insert into ${queue} (post_id) values (1)`)
    await applyAll(db.pool, queue)
    await db.pool.query(`select pgtally.next_batch($1, 'late')`, [queue])
    await age(queue, '20 minutes')
    expect((await cure(db, { code: 'CONSUMER_LAGS', name: `${queue} late` }, /skip/)).problem).toMatch(/waited for 20 minutes.*has never finished a batch. 1 of its batches is open and nobody is at work on it/)
    await cure(db, { code: 'CONSUMER_PAUSED', name: `${queue} paused one` }, /resume/)
    await cure(db, { code: 'CONSUMER_LAGS', name: `${queue} paused one` }, /unregister/)
    await db.pool.query(`select pgtally.record_consumer_error($1, 'failing', 'The broker is down')`, [queue])
    expect((await cure(db, { code: 'CONSUMER_FAILING', name: `${queue} failing` }, /unregister/)).problem).toMatch(/: The broker is down\. Its/)
  })

  test('dead letters', async () => {
    const { counter: queue } = await createBlog(db, tally)
    await tally.queue(queue).register('mailer')
    const fail = () => db.pool.query(`select pgtally.fail_event($1, 'mailer', '1', now(), '1', 1, null, 5, 'no such address')`, [queue])
    await fail()
    expect((await cure(db, { code: 'DEAD_LETTERS', name: `${queue} mailer` }, /replay/)).problem).toMatch(/1 event could not be handled.*no such address/)
    await fail()
    await cure(db, { code: 'DEAD_LETTERS', name: `${queue} mailer` }, /dead-letters|purge/)
    await tally.queue(queue).unregister('mailer')
  })
})

describe('slots', () => {
  const rotates = (blog: Blog) => ({ code: 'SLOTS_NOT_EMPTIED' as const, name: blog.counter })

  test('of time buckets, that nobody empties', async () => {
    const { counter } = await createBlog(db, tally, { rest: { buckets: [{ width: '1 minute', retain: '2 hours' }] } })
    const overdue = { code: 'BUCKETS_NOT_EXPIRED' as const, name: counter }
    const later = (interval: string) => db.pool.query(`update pgtally.bucket set kept_since = kept_since - interval '${interval}' where counter_id = (select counter_id from pgtally.counter where name = $1)`, [counter])
    await later('30 minutes')
    expect(await find(db, overdue)).toBeUndefined()
    await later('90 minutes')
    expect((await cure(db, overdue)).problem).toMatch(/buckets of 00:01:00 are to be kept for 02:00:00, and are kept for 2 hours longer/)
  })

  test('that wait for a counter, a consumer, or a session, or for a worker', async () => {
    const blog = await createBlog(db, tally, { rest: { rotationPeriodMs: 1000 } })
    await tally.queue(blog.counter).register('forgotten')
    const session = await db.connect()
    await session.query(`set application_name = 'admin shell'; begin`)
    // In each slot, so that the session has locked all that are overdue.
    await waitFor(async () => {
      await like(session, blog, 1)
      return (await value<number>(session, `select count(distinct ev_slot)::int from pgtally.event_${await queueId(blog.counter)}`)) === 3
    }, { what: 'a turn of the slots' })
    await like(db.pool, blog, 2)
    await age(blog.counter, '10 minutes')
    const finding = await findSoon(db, rotates(blog))
    const backend = await value<number>(session, 'select pg_backend_pid()')
    expect(finding.problem).toMatch(new RegExp(`events of 10 minutes ago.*the counter ${blog.counter}, which has not applied them; the consumer forgotten, which has not finished them;.*session ${backend} \\(admin shell, idle in transaction\\)`))
    expect(finding.remedy).toContainEqual({ sql: `SELECT pg_terminate_backend(${backend});` })
    await follow(db, finding, /drain|skip/)
    await waitFor(async () => (await findSoon(db, rotates(blog))).problem.includes('They wait for session'), { what: 'the session alone to be blamed' })
    await cureByRotating(blog, /terminate|rotate/)
    // Once more, for nobody.
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    await tally.queue(blog.counter).unregister('forgotten')
    await age(blog.counter, '10 minutes')
    expect((await findSoon(db, rotates(blog))).problem).toContain('Nobody holds them')
    await cureByRotating(blog, /rotate/)
  })

  /** A slot that is being written is emptied by the next call. */
  const cureByRotating = async (blog: Blog, only: RegExp) => {
    const rotating = setInterval(() => void db.pool.query('select pgtally.rotate($1)', [blog.counter]).catch(() => {}), 200)
    try {
      await cure(db, rotates(blog), only)
    } finally {
      clearInterval(rotating)
    }
  }

  test('with traces of a clock that was ahead', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    await db.pool.query(`update pgtally.batch set finished_at = finished_at + interval '3 hours' where batch_id = (select max(batch_id) from pgtally.batch where consumer_id = (select counter_id from pgtally.counter where name = $1))`, [blog.counter])
    expect((await cure(db, { code: 'CLOCK_SET_BACK', name: blog.counter })).problem).toMatch(/batches were finished 2 hours 59 minutes in the future, so no slot is emptied until then/)
    await db.pool.query(`update pgtally.event_${await queueId(blog.counter)} set ev_time = ev_time + interval '3 hours'`)
    expect((await findSoon(db, { code: 'CLOCK_SET_BACK', name: blog.counter })).problem).toMatch(/events are dated/)
    await tally.dropCounter(blog.counter)
  })
})

describe('carried keys', () => {
  for (const [what, lock] of [
    ['a session that has updated the row', (posts: string) => `update ${posts} set title = 'x' where id = 1`],
    ['a session that has locked the row', (posts: string) => `select from ${posts} where id = 1 for no key update`],
    ['a session in a subtransaction', (posts: string) => `savepoint s; update ${posts} set title = 'x' where id = 1`],
    ['a session that is not the only one', (posts: string) => `select from ${posts} where id = 1 for share`],
  ] as const) {
    test(`held by ${what}`, async () => {
      const blog = await createBlog(db, tally)
      const [holder, sharing] = [await db.connect(), await db.connect()]
      if (what.includes('only one')) await sharing.query(`begin; select from ${blog.posts} where id = 1 for key share`)
      await holder.query(`set application_name = 'holder'; begin; ${lock(blog.posts)}`)
      await like(db.pool, blog, 1)
      expect(await apply(db.pool, blog.counter)).toMatchObject({ carried: 1 })
      await db.pool.query(`update pgtally.carry_${await value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [blog.counter])} set since = since - interval '10 minutes'`)
      const ailment = { code: 'CARRIED_LONG' as const, name: blog.counter }
      const finding = await findSoon(db, ailment)
      const culprits = await Promise.all([holder, sharing].map((session) => value<number>(session, 'select pg_backend_pid()')))
      expect(culprits.some((pid) => finding.problem.includes(`Session ${pid} (`))).toBe(true)
      expect(finding.problem).toMatch(/the key 1 of .* has waited for 10 minutes/)
      // Who only refers to the row is no obstacle.
      await sharing.end()
      await cure(db, ailment)
      expect(await tally.counter(blog.counter).get(1)).toBe(1)
    })
  }
})

test('all that was provoked here is mended', async () => {
  expect(troubles(await diagnose(db))).toEqual([])
})
