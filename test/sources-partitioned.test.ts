import { pipeline } from 'node:stream/promises'
import { Readable } from 'node:stream'

import { from as copyFrom } from 'pg-copy-streams'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, installed, stored, value, violations, type Blog } from './support/fixtures.ts'

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

// Statements on the parent fire the parent's triggers only, so a part of a table cannot be a source of its own.
test('a partition or an inheritance child is refused as a source', async () => {
  const { counter: name } = blog
  await db.pool.query(`create table ${name}_parent (post_id bigint); create table ${name}_child () inherits (${name}_parent)`)
  for (const table of [`${name}_m1`, `${name}_child`]) {
    await expect(tally.createCounter(`part ${table}`, { source: { table, key: 'post_id' } })).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  }
})
