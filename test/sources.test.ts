import { pipeline } from 'node:stream/promises'
import { Readable } from 'node:stream'

import { from as copyFrom } from 'pg-copy-streams'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, createBlog, installed, stored, value, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally
let blog: Blog

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** The counts after everything has been applied; the invariant is checked before and after. */
async function counts(of: Blog = blog): Promise<Record<string, number>> {
  expect(await violations(db, of.counter)).toEqual([])
  await applyAll(db.pool, of.counter)
  expect(await violations(db, of.counter)).toEqual([])
  return stored(db.pool, of)
}

describe('counts of rows', () => {
  beforeEach(async () => {
    blog = await createBlog(db, tally)
  })

  test('INSERT of one row and of many', async () => {
    await db.pool.query(`insert into ${blog.likes} (post_id) values (1)`)
    await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + n % 3 from generate_series(1, 9) n`)
    await db.pool.query(`insert into ${blog.likes} (post_id) select 1 where false`)
    expect(await counts()).toEqual({ 1: 4, 2: 3, 3: 3 })
  })

  test('INSERT … ON CONFLICT', async () => {
    await db.pool.query(`insert into ${blog.likes} (id, post_id) overriding system value values (1001, 1), (1002, 1)`)
    await db.pool.query(`insert into ${blog.likes} (id, post_id) overriding system value values (1001, 2), (1003, 2) on conflict (id) do nothing`)
    await db.pool.query(`insert into ${blog.likes} (id, post_id) overriding system value values (1002, 3), (1004, 3) on conflict (id) do update set post_id = excluded.post_id`)
    expect(await counts()).toEqual({ 1: 1, 2: 1, 3: 2 })
  })

  test('UPDATE that moves likes, and one that does not', async () => {
    await db.pool.query(`insert into ${blog.likes} (post_id) values (1), (1), (2)`)
    await db.pool.query(`update ${blog.likes} set kind = 'love'`)
    await db.pool.query(`update ${blog.likes} set post_id = 3 - post_id`)
    expect(await counts()).toEqual({ 1: 1, 2: 2 })
    // Moved within one statement, the sums are zero: no event at all.
    await db.pool.query(`update ${blog.likes} set weight = weight + 1`)
    expect(await value(db.pool, 'select pending_events::int from pgtally.counter_status() where name = $1', [blog.counter])).toBe(0)
  })

  test('DELETE, also through the foreign key of many posts at once', async () => {
    await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + n % 10 from generate_series(1, 50) n`)
    await db.pool.query(`delete from ${blog.likes} where post_id = 1`)
    expect(await counts()).toEqual({ 2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 7: 5, 8: 5, 9: 5, 10: 5 })
    await db.pool.query(`delete from ${blog.posts} where id <= 5`)
    expect(await counts()).toEqual({ 6: 5, 7: 5, 8: 5, 9: 5, 10: 5 })
  })

  test('several commands on the table in one statement', async () => {
    await db.pool.query(`
      with a as (insert into ${blog.likes} (post_id) values (1), (2)), b as (insert into ${blog.likes} (post_id) values (1), (3))
      insert into ${blog.likes} (post_id) values (1)`)
    await db.pool.query(`
      with a as (delete from ${blog.likes} where post_id = 2), b as (update ${blog.likes} set post_id = 4 where post_id = 3)
      insert into ${blog.likes} (post_id) values (5)`)
    expect(await counts()).toEqual({ 1: 3, 4: 1, 5: 1 })
  })

  test('a trigger of the application that changes or writes more likes', async () => {
    await db.pool.query(`
      create function ${blog.likes}_moves() returns trigger language plpgsql as 'begin new.post_id := new.post_id + 1; return new; end';
      create trigger a before insert on ${blog.likes} for each row when (new.kind = 'move') execute function ${blog.likes}_moves();
      create function ${blog.likes}_adds() returns trigger language plpgsql as $$
        begin insert into public.${blog.likes} (post_id) values (9); delete from public.${blog.likes} where id = new.id; return null; end $$;
      create trigger b after insert on ${blog.likes} for each row when (new.kind = 'swap') execute function ${blog.likes}_adds()`)
    await db.pool.query(`insert into ${blog.likes} (post_id, kind) values (1, 'move'), (5, 'like'), (6, 'swap'), (7, 'swap')`)
    expect(await counts()).toEqual({ 2: 1, 5: 1, 9: 2 })
  })

  test('TRUNCATE: plain, RESTART IDENTITY and CASCADE from posts', async () => {
    const add = `insert into ${blog.likes} (post_id) values (1), (1), (2)`
    await db.pool.query(add)
    await db.pool.query(`truncate ${blog.likes}`)
    expect(await counts()).toEqual({})
    await db.pool.query(`begin; ${add}; truncate ${blog.likes} restart identity; ${add}; commit`)
    expect(await counts()).toEqual({ 1: 2, 2: 1 })
    await db.pool.query(`begin; truncate ${blog.likes}; rollback`)
    expect(await counts()).toEqual({ 1: 2, 2: 1 })
    await db.pool.query(`truncate ${blog.posts} cascade`)
    expect(await counts()).toEqual({})
    await db.pool.query(`insert into ${blog.posts} (id) values (1)`)
    await db.pool.query(`insert into ${blog.likes} (post_id) values (1)`)
    expect(await counts()).toEqual({ 1: 1 })
  })

  test('TRUNCATE in REPEATABLE READ is refused: it could not see what it takes away', async () => {
    const client = await db.connect()
    await client.query('begin isolation level repeatable read; select 1')
    await db.pool.query(`insert into ${blog.likes} (post_id) values (1)`)
    await expect(client.query(`truncate ${blog.likes}`)).rejects.toMatchObject({ code: 'TL004' })
    await client.query('rollback')
    expect(await counts()).toEqual({ 1: 1 })
  })

  test('COPY', async () => {
    const client = await db.connect()
    await pipeline(Readable.from(['1\n', '2\n', '2\n', '\\N\n']), client.query(copyFrom(`copy ${blog.likes} (post_id) from stdin`)))
    expect(await counts()).toEqual({ 1: 1, 2: 2 })
  })

  test('MERGE', async (context) => {
    if ((await value<number>(db.pool, `select current_setting('server_version_num')::int`)) < 150_000) context.skip('needs PostgreSQL 15')
    await db.pool.query(`insert into ${blog.likes} (post_id, kind) values (1, 'keep'), (2, 'move'), (3, 'go')`)
    await db.pool.query(`
      merge into ${blog.likes} l using (values ('keep'), ('move'), ('go'), ('new'), ('new')) as u(kind) on l.kind = u.kind
      when matched and u.kind = 'move' then update set post_id = 4
      when matched and u.kind = 'go' then delete
      when not matched then insert (post_id, kind) values (5, u.kind)`)
    expect(await counts()).toEqual({ 1: 1, 4: 1, 5: 2 })
  })

  test('SERIALIZABLE writers are not disturbed by batches', async () => {
    const client = await db.connect()
    for (let n = 0; n < 5; n++) {
      await client.query('begin isolation level serializable')
      await client.query(`select count(*) from ${blog.likes}`)
      await client.query(`insert into ${blog.likes} (post_id) values (1)`)
      await applyAll(db.pool, blog.counter)
      await client.query('commit')
    }
    expect(await counts()).toEqual({ 1: 5 })
  })
})

describe('where and sum', () => {
  test('an UPDATE that changes the condition or the sum moves the count', async () => {
    blog = await createBlog(db, tally, { source: { where: `kind = 'like' and weight > 0`, sum: 'weight' } })
    await db.pool.query(`insert into ${blog.likes} (post_id, kind, weight) values (1, 'like', 5), (1, 'love', 7), (1, null, 1), (2, 'like', -3), (2, 'like', null)`)
    expect(await counts()).toEqual({ 1: 5 })
    await db.pool.query(`update ${blog.likes} set kind = 'like' where kind = 'love'`)
    expect(await counts()).toEqual({ 1: 12 })
    await db.pool.query(`update ${blog.likes} set weight = weight - 1 where post_id = 1`)
    expect(await counts()).toEqual({ 1: 10 })
    await db.pool.query(`update ${blog.likes} set weight = null where weight = 6`)
    expect(await counts()).toEqual({ 1: 4 })
    await db.pool.query(`update ${blog.likes} set post_id = 3, weight = 9 where weight = 4`)
    expect(await counts()).toEqual({ 3: 9 })
    await db.pool.query(`truncate ${blog.likes}`)
    expect(await counts()).toEqual({})
  })

  test('a sum of NULLs only, and of values that cancel out', async () => {
    blog = await createBlog(db, tally, { source: { sum: 'weight' } })
    await db.pool.query(`insert into ${blog.likes} (post_id, weight) values (1, null), (1, null), (2, 5), (2, -5), (3, 1)`)
    expect(await counts()).toEqual({ 3: 1 })
    await db.pool.query(`delete from ${blog.likes}`)
    expect(await counts()).toEqual({})
  })

  const conditions: [name: string, where: string, kind: string][] = [
    ['percent signs', `kind like '100%%s' or kind like '%I%L%1$s'`, 'x%I%L%1$s'],
    ['quotes', `kind = 'it''s "quoted"'`, `it's "quoted"`],
    ['dollar quotes', `kind = $q$it's $$ $body$ $q$`, `it's $$ $body$ `],
    ['a trailing comment', `kind = 'like' -- that's all`, 'like'],
    ['backslashes', String.raw`kind = E'a\\b' or kind = 'c\d'`, String.raw`a\b`],
  ]
  for (const [name, where, kind] of conditions) {
    test(`where with ${name}`, async () => {
      blog = await createBlog(db, tally, { source: { where, sum: 'weight /* 100% */ -- one' } })
      await db.pool.query(`insert into ${blog.likes} (post_id, kind) values (1, $1), (2, 'another')`, [kind])
      expect(await counts()).toEqual({ 1: 1 })
      await db.pool.query(`update ${blog.likes} set kind = 'another'`)
      await db.pool.query(`update ${blog.likes} set kind = $1 where post_id = 2`, [kind])
      expect(await counts()).toEqual({ 2: 1 })
      await db.pool.query(`truncate ${blog.likes}`)
      expect(await counts()).toEqual({})
    })
  }
})

describe('names and types', () => {
  test('names that need quotes', async () => {
    await db.pool.query(`
      create schema "Odd Schema";
      create table "Odd Schema"."Weird Posts" ("Key Col" bigint primary key, "count""%I" int not null default 0);
      create table "Odd Schema"."Weird Table" ("Post %s" bigint, "select" int);
      insert into "Odd Schema"."Weird Posts" values (1), (2)`)
    await tally.createCounter(`odd "name" %s 'x'`, {
      source: { table: '"Odd Schema"."Weird Table"', key: 'Post %s', where: `"select" > 0`, sum: '"select"' },
      target: { table: '"Odd Schema"."Weird Posts"', key: 'Key Col', column: 'count"%I' },
    })
    await db.pool.query(`insert into "Odd Schema"."Weird Table" values (1, 2), (1, 3), (2, 0)`)
    await db.pool.query(`update "Odd Schema"."Weird Table" set "Post %s" = 2 where "select" = 3`)
    await db.pool.query(`begin; insert into "Odd Schema"."Weird Table" values (1, 2); truncate "Odd Schema"."Weird Table"; insert into "Odd Schema"."Weird Table" values (1, 2), (2, 3); commit`)
    expect(await violations(db, `odd "name" %s 'x'`)).toEqual([])
    await applyAll(db.pool, `odd "name" %s 'x'`)
    expect((await db.pool.query(`select "count""%I" n from "Odd Schema"."Weird Posts" order by 1`)).rows).toEqual([{ n: 2 }, { n: 3 }])
    expect(await tally.counter(`odd "name" %s 'x'`).get(2)).toBe(3)
    await tally.dropCounter(`odd "name" %s 'x'`)
  })

  for (const name of ['slot', 'k', 'd', 'key', 'delta', 'new_rows', 'old_rows', 'changed', 'tg_op', 'count', 'value', 'user', 'u', 't', 'keys', 'ev_key']) {
    test(`columns named ${name}`, async () => {
      const q = `"${name}"`
      await db.pool.query(`create table named_source_${name} (${q} bigint, other int); create table named_target_${name} (${q} bigint primary key, n bigint not null default 0, d2 bigint);
        insert into named_target_${name} values (1), (2)`)
      await tally.createCounter(`named ${name}`, {
        source: { table: `named_source_${name}`, key: name, where: `${q} > 0`, sum: `${q} + other - ${q}` },
        target: { table: `named_target_${name}`, key: name, column: 'n' },
      })
      await tally.createCounter(`rows ${name}`, { source: { table: `named_source_${name}`, key: name }, target: { table: `named_target_${name}`, key: name, column: 'd2' } })
      await db.pool.query(`insert into named_source_${name} values (1, 1), (1, 2), (2, 3)`)
      await db.pool.query(`update named_source_${name} set ${q} = 2 where other = 2`)
      await db.pool.query(`delete from named_source_${name} where other = 3`)
      for (const counter of [`named ${name}`, `rows ${name}`]) {
        expect(await violations(db, counter)).toEqual([])
        await applyAll(db.pool, counter)
      }
      expect((await db.pool.query(`select n::int, d2::int from named_target_${name} order by 1`)).rows).toEqual([{ n: 1, d2: 1 }, { n: 2, d2: 1 }])
    })
  }

  test('a target column named like the variables in use', async () => {
    await db.pool.query('create table delta_source (post bigint); create table delta_target (u bigint primary key, delta bigint not null default 0); insert into delta_target values (1)')
    await tally.createCounter('delta', { source: { table: 'delta_source', key: 'post' }, target: { table: 'delta_target', key: 'u', column: 'delta' } })
    await db.pool.query('insert into delta_source values (1), (1)')
    await applyAll(db.pool, 'delta')
    expect(await value(db.pool, 'select delta::int from delta_target')).toBe(2)
    expect(await tally.counter('delta').getMany([1, 7])).toEqual(new Map([[1, 2], [7, 0]]))
  })

  const uuid = '9c2f4cfc-6b0a-4a5c-9d4a-0d4cbd5b7a11'
  const types: [source: string, target: string, key: string][] = [
    ['smallint', 'smallint', '7'], ['integer', 'integer', '7'], ['bigint', 'bigint', '7'], ['uuid', 'uuid', uuid], ['text', 'text', `it's, {a} "b"`],
    ['varchar(30)', 'text', 'Ä, NULL'], ['text', 'varchar(30)', 'null'], ['integer', 'bigint', '7'], ['bigint', 'smallint', '7'], ['smallint', 'bigint', '-7'],
  ]
  for (const [index, [source, target, key]] of types.entries()) {
    test(`${source} keys with ${target} keys in the target`, async () => {
      const name = `typed_${index}`
      await db.pool.query(`create table ${name}_source (post ${source}); create table ${name}_target (id ${target} primary key, n bigint not null default 0)`)
      await tally.createCounter(name, { source: { table: `${name}_source`, key: 'post' }, target: { table: `${name}_target`, key: 'id', column: 'n' } })
      await tally.createCounter(`${name} inside`, { source: { table: `${name}_source`, key: 'post' } })
      await db.pool.query(`insert into ${name}_target (id) values ($1)`, [key])
      await db.pool.query(`insert into ${name}_source values ($1), ($1)`, [key])
      for (const counter of [name, `${name} inside`]) {
        expect(await violations(db, counter)).toEqual([])
        await applyAll(db.pool, counter)
        expect(await violations(db, counter)).toEqual([])
        expect(await tally.counter(counter).get(key)).toBe(2)
      }
    })
  }

  test('ids of the target beyond the range of the source', async () => {
    await db.pool.query('create table narrow_likes (post integer); create table wide_posts (id bigint primary key, n bigint not null default 0); insert into wide_posts values (1, 0), (5000000000, 3)')
    await tally.createCounter('narrow', { source: { table: 'narrow_likes', key: 'post' }, target: { table: 'wide_posts', key: 'id', column: 'n' } })
    await db.pool.query('insert into narrow_likes values (1)')
    await applyAll(db.pool, 'narrow')
    await value(db.pool, `select pgtally.apply_carried('narrow')`)
    expect((await db.pool.query('select n::int from wide_posts order by id')).rows).toEqual([{ n: 1 }, { n: 0 }])
  })
})

describe('what generates or changes keys', () => {
  test('a stored generated column as the key', async () => {
    await db.pool.query(`create table stored_likes (url text, post text generated always as (lower(url)) stored)`)
    await tally.createCounter('stored', { source: { table: 'stored_likes', key: 'post' } })
    await db.pool.query(`insert into stored_likes values ('A'), ('a'); update stored_likes set url = 'B' where url = 'A'`)
    expect(await violations(db, 'stored')).toEqual([])
    await applyAll(db.pool, 'stored')
    expect(await tally.counter('stored').getMany(['a', 'b'])).toEqual(new Map([['a', 1], ['b', 1]]))
  })

  // A trigger's transition table shows such a column as NULL.
  for (const [use, source] of Object.entries({ key: { key: 'post' }, where: { key: 'url', where: `post = 'a'` }, sum: { key: 'url', sum: 'length(post)' } })) {
    test(`a virtual generated column as the ${use} is counted, or refused`, async (context) => {
      if ((await value<number>(db.pool, `select current_setting('server_version_num')::int`)) < 180_000) context.skip('needs PostgreSQL 18')
      await db.pool.query(`create table virtual_likes_${use} (url text, post text generated always as (lower(url)) virtual)`)
      const created = await tally.createCounter(`virtual ${use}`, { source: { table: `virtual_likes_${use}`, ...source } }).catch((error: { code: string }) => error.code)
      await db.pool.query(`insert into virtual_likes_${use} values ('A'), ('a')`)
      expect(created === 'INVALID_DEFINITION' ? [] : await violations(db, `virtual ${use}`)).toEqual([])
    })
  }

  test('a source that is its own target', async () => {
    await db.pool.query('create table comments (id bigint primary key, parent_id bigint references comments on delete cascade, reply_count bigint not null default 0)')
    await tally.createCounter('replies', { source: { table: 'comments', key: 'parent_id' }, target: { table: 'comments', key: 'id', column: 'reply_count' } })
    await db.pool.query('insert into comments values (1, null), (2, 1), (3, 1), (4, 3), (5, 4)')
    await applyAll(db.pool, 'replies')
    await db.pool.query('insert into comments values (6, 2), (7, 6)')
    await db.pool.query('delete from comments where id = 3')
    expect(await violations(db, 'replies')).toEqual([])
    await applyAll(db.pool, 'replies')
    expect((await db.pool.query('select id::int, reply_count::int n from comments order by id')).rows).toEqual([{ id: 1, n: 1 }, { id: 2, n: 1 }, { id: 6, n: 1 }, { id: 7, n: 0 }])
    expect(await value(db.pool, `select pending_events::int from pgtally.counter_status() where name = 'replies'`)).toBe(0)
  })
})
