import { pipeline } from 'node:stream/promises'
import { Readable } from 'node:stream'

import { from as copyFrom } from 'pg-copy-streams'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, installed, outcome, pid, stored, value, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally
let blog: Blog
let number = 0

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** likes, by month: m1 with columns in another order, m2 divided again into m2a and m2b, and m3 in another schema. */
beforeEach(async () => {
  const name = `p${++number}`
  blog = { counter: name, posts: `${name}_posts`, likes: `${name}_likes` }
  await db.pool.query(`
    create table ${name}_posts (id bigint primary key, like_count bigint not null default 0);
    insert into ${name}_posts select generate_series(1, 5);
    create table ${name}_likes (post_id bigint, month int, day int) partition by list (month);
    create table ${name}_m1 (gone int, day int, month int, post_id bigint);
    alter table ${name}_m1 drop column gone;
    alter table ${name}_likes attach partition ${name}_m1 for values in (1);
    create table ${name}_m2 partition of ${name}_likes for values in (2) partition by range (day);
    create table ${name}_m2a partition of ${name}_m2 for values from (1) to (16);
    create table ${name}_m2b partition of ${name}_m2 for values from (16) to (32);
    create schema ${name};
    create table ${name}."M 3" partition of ${name}_likes for values in (3);
    insert into ${name}_likes values (1, 1, 1), (1, 2, 20), (2, 3, 1)`)
  await tally.createCounter(name, {
    source: { table: `${name}_likes`, key: 'post_id' },
    target: { table: `${name}_posts`, key: 'id', column: 'like_count' },
  })
  await counts()
})

async function counts(): Promise<Record<string, number>> {
  expect(await violations(db, blog.counter)).toEqual([])
  await applyAll(db.pool, blog.counter)
  await value(db.pool, 'select pgtally.apply_carried($1)', [blog.counter])
  expect(await violations(db, blog.counter)).toEqual([])
  return stored(db.pool, blog)
}

test('through the root', async () => {
  const { counter: name } = blog
  await db.pool.query(`insert into ${name}_likes values (3, 1, 1), (3, 2, 1), (3, 2, 20), (3, 3, 1)`)
  expect(await counts()).toEqual({ 1: 2, 2: 1, 3: 4 })
  await db.pool.query(`delete from ${name}_likes where month = 2`)
  expect(await counts()).toEqual({ 1: 1, 2: 1, 3: 2 })
  const client = await db.connect()
  await pipeline(Readable.from(['4\t1\t1\n', '4\t2\t17\n']), client.query(copyFrom(`copy ${name}_likes from stdin`)))
  expect(await counts()).toEqual({ 1: 1, 2: 1, 3: 2, 4: 2 })
})

test('directly on a partition, or on one in the middle', async () => {
  const { counter: name } = blog
  await db.pool.query(`insert into ${name}_m1 (post_id, month, day) values (3, 1, 1); insert into ${name}_m2 values (3, 2, 1); insert into ${name}_m2b values (3, 2, 30); insert into ${name}."M 3" values (3, 3, 3)`)
  expect(await counts()).toEqual({ 1: 2, 2: 1, 3: 4 })
  await db.pool.query(`update ${name}_m1 set post_id = 4; delete from ${name}_m2 where post_id = 1; update ${name}_m2b set post_id = 5; delete from ${name}."M 3"`)
  expect(await counts()).toEqual({ 3: 1, 4: 2, 5: 1 })
  const client = await db.connect()
  await pipeline(Readable.from(['1\t1\t2\n']), client.query(copyFrom(`copy ${name}_m1 from stdin`)))
  expect(await counts()).toEqual({ 2: 1, 3: 1, 4: 2, 5: 1 })
})

test('an UPDATE that moves rows to other partitions', async () => {
  const { counter: name } = blog
  await db.pool.query(`update ${name}_likes set month = 4 - month, post_id = post_id + 2 where month in (1, 3)`)
  expect(await counts()).toEqual({ 1: 1, 3: 1, 4: 1 })
  await db.pool.query(`update ${name}_m2 set day = 32 - day, post_id = 5`)
  expect(await counts()).toEqual({ 3: 1, 4: 1, 5: 1 })
  await db.pool.query(`update ${name}_likes set month = 1`)
  expect(await counts()).toEqual({ 3: 1, 4: 1, 5: 1 })
  expect(await value(db.pool, `select count(*)::int from ${name}_m1`)).toBe(3)
})

test('MERGE that inserts, moves and deletes', async (context) => {
  if ((await value<number>(db.pool, `select current_setting('server_version_num')::int`)) < 150_000) context.skip('needs PostgreSQL 15')
  const { counter: name } = blog
  await db.pool.query(`
    merge into ${name}_likes l using (values (1), (2), (3), (4)) u(m) on l.month = u.m
    when matched and u.m = 1 then update set month = 3, post_id = 4
    when matched and u.m = 2 then delete
    when not matched then insert values (5, 1, 1)`)
  expect(await counts()).toEqual({ 2: 1, 4: 1, 5: 1 })
})

describe('TRUNCATE', () => {
  test('of the root', async () => {
    await db.pool.query(`truncate ${blog.likes}`)
    expect(await counts()).toEqual({})
  })

  test('of a partition, and of one in the middle', async () => {
    await db.pool.query(`truncate ${blog.counter}_m1`)
    expect(await counts()).toEqual({ 1: 1, 2: 1 })
    await db.pool.query(`truncate ${blog.counter}_m2, ${blog.counter}."M 3"`)
    expect(await counts()).toEqual({})
  })
})

// The counter would be wrong without a word: the partition has none of the triggers, or keeps them when it has left.
// Workers do this all the time.
const syncTriggers = (name: string) => db.pool.query(`select pgtally.sync_triggers($1)`, [name])

describe('a partition that comes or goes later', () => {
  test('one that is created: its own statements, and a TRUNCATE', async () => {
    const { counter: name } = blog
    await db.pool.query(`create table ${name}_m4 partition of ${name}_likes for values in (4)`)
    await db.pool.query(`insert into ${name}_likes values (3, 4, 1)`)
    expect(await counts()).toEqual({ 1: 2, 2: 1, 3: 1 })
    await syncTriggers(name)
    await db.pool.query(`insert into ${name}_m4 values (3, 4, 2)`)
    expect(await violations(db, name)).toEqual([])
    await db.pool.query(`truncate ${name}_likes`)
    expect(await violations(db, name)).toEqual([])
  })

  test('one that is created: a TRUNCATE of the root counts its rows', async () => {
    const { counter: name } = blog
    await db.pool.query(`create table ${name}_m4 partition of ${name}_likes for values in (4)`)
    await syncTriggers(name)
    await db.pool.query(`insert into ${name}_likes values (3, 4, 1)`)
    await db.pool.query(`truncate ${name}_likes`)
    expect(await counts()).toEqual({})
  })

  test('one that is detached counts no longer', async () => {
    const { counter: name } = blog
    await db.pool.query(`delete from ${name}_m1`)
    await db.pool.query(`alter table ${name}_likes detach partition ${name}_m1`)
    await syncTriggers(name)
    await db.pool.query(`insert into ${name}_m1 (post_id, month, day) values (3, 1, 1)`)
    expect(await counts()).toEqual({ 1: 1, 2: 1 })
  })
})

async function problems(name: string): Promise<string[]> {
  return (await tally.status()).counters.find((counter) => counter.name === name)?.problems ?? []
}

const broughtRows = (name: string) => [expect.stringMatching(new RegExp(`^Partitions of (public\\.)?${name}_likes came or went with rows in them.*pgtally reconcile ${name}$`))]

/** Reconciles because status asks for it, and then all is well. Gives how many keys were wrong. */
async function mend(name: string): Promise<number> {
  expect(await problems(name)).toEqual(broughtRows(name))
  const { driftingKeys } = await tally.counter(name).reconcile()
  expect(await problems(name)).toEqual([])
  await counts()
  await syncTriggers(name)
  expect(await problems(name)).toEqual([])
  return driftingKeys
}

describe('a partition that brings rows along or takes them away', () => {
  const tree = (name: string) => `
    create table ${name}_m4 (post_id bigint, month int, day int) partition by range (day);
    create table ${name}_m4a partition of ${name}_m4 for values from (1) to (16);
    create table ${name}_m4b partition of ${name}_m4 for values from (16) to (32);`
  for (const [what, change, driftingKeys] of [
    ['attached', (name) => `create table ${name}_m4 (like ${name}_likes); insert into ${name}_m4 values (3, 4, 1), (3, 4, 2), (4, 4, 1); alter table ${name}_likes attach partition ${name}_m4 for values in (4)`, 2],
    ['attached by the transaction that filled it', (name) => `begin; create table ${name}_m4 (like ${name}_likes); insert into ${name}_m4 values (3, 4, 1), (4, 4, 1); alter table ${name}_likes attach partition ${name}_m4 for values in (4); commit`, 2],
    ['attached with partitions of its own', (name) => `${tree(name)} insert into ${name}_m4 values (3, 4, 20); alter table ${name}_likes attach partition ${name}_m4 for values in (4)`, 1],
    ['attached to a partition that came before', (name) => `${tree(name)} alter table ${name}_likes attach partition ${name}_m4 for values in (4); create table ${name}_m4c (like ${name}_likes);
      insert into ${name}_m4c values (5, 4, 0); alter table ${name}_m4 attach partition ${name}_m4c for values from (0) to (1)`, 1],
    ['detached', (name) => `alter table ${name}_likes detach partition ${name}_m1`, 1],
    ['detached with partitions of its own', (name) => `alter table ${name}_likes detach partition ${name}_m2`, 1],
    ['detached from one in the middle', (name) => `alter table ${name}_m2 detach partition ${name}_m2b`, 1],
    ['dropped', (name) => `drop table ${name}."M 3"`, 1],
    ['dropped with partitions of its own', (name) => `drop table ${name}_m2`, 1],
  ] as [string, (name: string) => string, number][]) {
    test(`${what}: status says so, and a reconciliation mends it`, async () => {
      const { counter: name } = blog
      // Each in a transaction of its own, unless it says otherwise.
      for (const statement of change(name).startsWith('begin') ? [change(name)] : change(name).split(';')) await db.pool.query(statement)
      await syncTriggers(name)
      expect(await mend(name)).toBe(driftingKeys)
    })
  }

  test('and rows are written through the whole table before that is noticed: only those it brought are missing', async () => {
    const { counter: name } = blog
    await db.pool.query(`create table ${name}_m4 (like ${name}_likes)`)
    await db.pool.query(`insert into ${name}_m4 values (3, 4, 1)`)
    await db.pool.query(`alter table ${name}_likes attach partition ${name}_m4 for values in (4)`)
    await db.pool.query(`insert into ${name}_likes values (4, 4, 1), (5, 4, 2)`)
    await syncTriggers(name)
    await db.pool.query(`insert into ${name}_m4 values (4, 4, 1)`)
    expect(await tally.counter(name).audit()).toMatchObject({ drifts: [{ key: '3', drift: 1 }] })
    expect(await mend(name)).toBe(1)
  })

  test('while a reconciliation is under way: that ends, and another is asked for', async () => {
    const { counter: name } = blog
    await db.pool.query(`create index on ${name}_likes (post_id)`)
    const begun = await value<string>(db.pool, 'select pgtally.begin_reconciliation($1)', [name])
    expect(await value(db.pool, 'select last_key from pgtally.reconcile_range($1, 1)', [begun])).toBe('1')
    await db.pool.query(`create table ${name}_m4 (like ${name}_likes)`)
    await db.pool.query(`insert into ${name}_m4 values (1, 4, 1), (5, 4, 1)`)
    await db.pool.query(`alter table ${name}_likes attach partition ${name}_m4 for values in (4)`)
    await syncTriggers(name)
    expect(await value(db.pool, 'select last_key from pgtally.reconcile_range($1, 1)', [begun])).toBeNull()
    expect(await mend(name)).toBe(2)
  })

  test('is noticed for every counter of the queue', async () => {
    const { counter: name } = blog
    await tally.createCounter(`${name}_follower`, { queue: name })
    await db.pool.query(`alter table ${name}_likes detach partition ${name}_m1`)
    await syncTriggers(name)
    for (const counter of [name, `${name}_follower`]) {
      expect(await problems(counter)).toHaveLength(1)
      expect(await tally.counter(counter).reconcile()).toMatchObject({ driftingKeys: 1 })
      expect(await problems(counter)).toEqual([])
    }
  })

  test('and belongs to a role whose tables pgtally\'s owner may neither read nor change: status says what is missing where', async () => {
    const { counter: name } = blog
    const worker = await db.connect()
    await db.pool.query(`
      create role ${name}_worker; create role ${name}_other;
      grant usage on schema pgtally to ${name}_worker; grant all on all tables in schema pgtally to ${name}_worker;
      grant all on all sequences in schema pgtally to ${name}_worker; grant execute on all functions in schema pgtally to ${name}_worker;
      create table ${name}_m4 (like ${name}_likes); insert into ${name}_m4 values (3, 4, 1); alter table ${name}_m4 owner to ${name}_other`)
    try {
      await db.pool.query(`alter table ${name}_likes attach partition ${name}_m4 for values in (4); alter table ${name}_likes detach partition ${name}_m1`)
      // With whose rights it runs.
      await db.pool.query(`alter function pgtally.sync_triggers owner to ${name}_worker`)
      await worker.query(`set role ${name}_worker`)
      expect(await value(worker, 'select pgtally.sync_triggers($1)', [name])).toBe(0)
      expect(await problems(name)).toEqual([
        ...broughtRows(name),
        expect.stringMatching(new RegExp(`^Triggers are missing or disabled on (public\\.)?${name}_m4:`)),
        expect.stringMatching(new RegExp(`^Not of its source any more, but with its triggers: (public\\.)?${name}_m1\\.`)),
      ])
      await db.pool.query('alter function pgtally.sync_triggers owner to current_user')
      await syncTriggers(name)
      expect(await mend(name)).toBe(2)
    } finally {
      await worker.query('reset role')
      await db.pool.query('alter function pgtally.sync_triggers owner to current_user')
      await db.pool.query(`drop owned by ${name}_worker cascade; drop role ${name}_worker; drop owned by ${name}_other cascade; drop role ${name}_other`)
    }
  })

  test('is noticed once by several workers at a time', async () => {
    const { counter: name } = blog
    await db.pool.query(`alter table ${name}_likes detach partition ${name}_m1`)
    const [first, second] = [await db.connect(), await db.connect()]
    const backend = await pid(second)
    await first.query('begin; set local lock_timeout = 0')
    await first.query('select pgtally.sync_triggers($1)', [name])
    const other = outcome(second.query('select pgtally.sync_triggers($1)', [name]))
    await blocked(db, backend)
    // The first one's user is quick.
    const id = await value<string>(first, 'select pgtally.begin_reconciliation($1)', [name])
    expect(await value(first, 'select last_key from pgtally.reconcile_range($1)', [id])).toBeNull()
    await first.query('commit')
    expect(await other).toBe('done')
    expect(await problems(name)).toEqual([])
    await counts()
  })
})

describe('nothing is asked for', () => {
  for (const [what, change] of [
    ['a partition is created, and filled through the whole table', (name) => `create table ${name}_m4 partition of ${name}_likes for values in (4); insert into ${name}_likes values (3, 4, 1)`],
    ['an empty partition is attached, and filled through the whole table', (name) => `create table ${name}_m4 (like ${name}_likes); alter table ${name}_likes attach partition ${name}_m4 for values in (4); insert into ${name}_likes values (3, 4, 1), (4, 4, 1)`],
    ['a partition that had rows is attached empty', (name) => `create table ${name}_m4 (like ${name}_likes); insert into ${name}_m4 values (3, 4, 1); delete from ${name}_m4; alter table ${name}_likes attach partition ${name}_m4 for values in (4)`],
    ['an empty partition is detached', (name) => `delete from ${name}_m1; alter table ${name}_likes detach partition ${name}_m1`],
    ['an empty tree of partitions is detached', (name) => `truncate ${name}_m2; alter table ${name}_likes detach partition ${name}_m2`],
    ['a partition is detached and attached again', (name) => `alter table ${name}_likes detach partition ${name}_m1; insert into ${name}_m1 (post_id, month, day) values (4, 1, 1); alter table ${name}_likes attach partition ${name}_m1 for values in (1)`],
    ['a row moves to a partition that was just created', (name) => `create table ${name}_m4 partition of ${name}_likes for values in (4); update ${name}_likes set month = 4 where month = 1`],
  ] as [string, (name: string) => string][]) {
    test(`when ${what}`, async () => {
      const { counter: name } = blog
      for (const statement of change(name).split(';')) await db.pool.query(statement)
      await syncTriggers(name)
      expect(await problems(name)).toEqual([])
      await counts()
    })
  }
})

describe('with a worker', () => {
  test('partitions come and go while likes are written, and all is mended', async () => {
    const { counter: name } = blog
    // Workers look several times in the shortest rotation period that there is.
    await tally.createCounter('ticking', { rotationPeriodMs: 1000 })
    await using worker = tally.worker({ pollIntervalMs: 10 })
    const stop = new AbortController()
    const writing = (async () => {
      // Not in the months of which the partitions change.
      while (!stop.signal.aborted) await db.pool.query(`insert into ${name}_likes values (1, 2, 3), (2, 2, 17)`)
    })()
    // Like any migration beside traffic, it is tried again where it could not have its locks at once.
    const alter = (change: string) => waitFor(async () => (await outcome(db.pool.query(`set local lock_timeout = '100ms'; ${change}`))) === 'done', { what: change })
    const noticed = async (driftingKeys: number) => {
      await waitFor(async () => (await problems(name)).length > 0, { what: 'the worker to notice' })
      expect(await problems(name)).toEqual(broughtRows(name))
      expect(await tally.counter(name).reconcile()).toMatchObject({ driftingKeys })
      expect(await problems(name)).toEqual([])
    }
    const reader = await db.connect()
    try {
      await db.pool.query(`create table ${name}_m4 (like ${name}_likes); insert into ${name}_m4 values (3, 4, 1), (4, 4, 1)`)
      await alter(`alter table ${name}_likes attach partition ${name}_m4 for values in (4)`)
      await noticed(2)
      await alter(`alter table ${name}_likes detach partition ${name}_m4`)
      await noticed(2)
      await alter(`drop table ${name}."M 3"`)
      await noticed(1)
      // CONCURRENTLY waits for those who are reading the whole table, without keeping others from it.
      await reader.query('begin isolation level repeatable read')
      await reader.query(`select count(*) from ${name}_likes`)
      const detaching = await db.connect()
      const backend = await pid(detaching)
      const detached = outcome(detaching.query(`alter table ${name}_likes detach partition ${name}_m1 concurrently`))
      await blocked(db, backend)
      await reader.query('commit')
      expect(await detached).toBe('done')
      await noticed(1)
    } finally {
      stop.abort()
      await writing
    }
    expect(await problems(name)).toEqual([])
    await worker.stop()
    await counts()
  })
})

// Statements on the parent fire the parent's triggers only, so a part of a table cannot be a source of its own.
test('a partition or an inheritance child is refused as a source', async () => {
  const { counter: name } = blog
  await db.pool.query(`create table ${name}_parent (post_id bigint); create table ${name}_child () inherits (${name}_parent)`)
  for (const table of [`${name}_m1`, `${name}_child`]) {
    await expect(tally.createCounter(`part ${table}`, { source: { table, key: 'post_id' } })).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  }
})
