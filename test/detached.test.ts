import { pipeline } from 'node:stream/promises'
import { Readable } from 'node:stream'

import { from as copyFrom } from 'pg-copy-streams'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

import type { CounterDefinition, Tally, Worker } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like, outcome, stored, value, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally
let worker: Worker
/** What goes on whatever becomes of the others. */
let witness: Blog

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  witness = await createBlog(db, tally)
  worker = tally.worker({ pollIntervalMs: 10 })
})

afterAll(async () => {
  await worker?.stop()
  await db?.drop()
})

// So that a test which fails holds up no other.
afterEach(async () => {
  await db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where state like 'idle in transaction%' and datname = current_database()`)
})

async function problems({ counter }: Blog): Promise<string[]> {
  const { counters } = await tally.status()
  const found = counters.find(({ name }) => name === counter)
  if (found === undefined) throw new Error(`The status has no counter "${counter}"`)
  return found.problems
}

const likeCount = (session: TestDatabase['pool'], { likes }: Blog) => value<number>(session, `select count(*)::int from ${likes}`)

/** The worker has applied all, and it is right. */
async function expectExact(blog: Blog): Promise<void> {
  await waitFor(async () => (await tally.status()).counters.some(({ name, pendingEvents, carriedKeys }) => name === blog.counter && pendingEvents + carriedKeys === 0), {
    what: 'all to be applied',
  })
  expect(await tally.counter(blog.counter).audit()).toMatchObject({ driftingKeys: 0 })
  expect(Object.values(await stored(db.pool, blog)).reduce((sum, count) => sum + count, 0)).toBe(await likeCount(db.pool, blog))
}

async function expectOthersGoOn(): Promise<void> {
  await like(db.pool, witness, 1)
  await expectExact(witness)
  expect(await problems(witness)).toEqual([])
}

async function lastError({ counter }: Blog): Promise<string> {
  return waitFor(async () => (await tally.status()).counters.find(({ name }) => name === counter)?.lastError ?? undefined, { what: 'an error of the counter' })
}

const definition = (blog: Blog, changed: { source?: object; target?: object } = {}): CounterDefinition => ({
  source: { table: blog.likes, key: 'post_id', ...changed.source },
  target: { table: blog.posts, key: 'id', column: 'like_count', ...changed.target },
})

/** The remedy that always works. */
async function createAgain(blog: Blog, changed?: Parameters<typeof definition>[1]): Promise<void> {
  await tally.dropCounter(blog.counter)
  await tally.createCounter(blog.counter, definition(blog, changed))
  expect(await problems(blog)).toEqual([])
}

/** With likes that are counted. */
async function startedBlog(options?: Parameters<typeof createBlog>[2]): Promise<Blog> {
  const blog = await createBlog(db, tally, options)
  await like(db.pool, blog, 1, 3)
  await like(db.pool, blog, 2)
  await tally.drain()
  expect(await stored(db.pool, blog)).toEqual({ 1: 3, 2: 1 })
  expect(await problems(blog)).toEqual([])
  return blog
}

test('renamed tables, and those in another schema, change nothing', async () => {
  const blog = await startedBlog()
  await db.pool.query(`create schema moved; alter table ${blog.likes} rename to "Likes of it"; alter table "Likes of it" set schema moved; alter table ${blog.posts} rename to "Posts of it"`)
  const renamed = { ...blog, likes: 'moved."Likes of it"', posts: '"Posts of it"' }
  await like(db.pool, renamed, 2)
  expect(await problems(renamed)).toEqual([])
  await expectExact(renamed)
  await db.pool.query(`truncate moved."Likes of it"`)
  await expectExact(renamed)
})

describe('the source', () => {
  test('dropped: status says so, and the counter can be created again for a new table', async () => {
    const blog = await startedBlog()
    await db.pool.query(`drop table ${blog.likes}`)
    expect(await problems(blog)).toEqual([expect.stringMatching(/source table was dropped.*Drop the counter/)])
    await expect(tally.counter(blog.counter).audit()).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringContaining('source table was dropped') })
    await expectOthersGoOn()
    await db.pool.query(`create table ${blog.likes} (post_id bigint); insert into ${blog.likes} values (1), (3)`)
    expect(await problems(blog)).toHaveLength(1)
    await createAgain(blog)
    await like(db.pool, blog, 3)
    await expectExact(blog)
    expect(await stored(db.pool, blog)).toEqual({ 1: 1, 3: 2 })
  })

  test('dropped: another table that has its number, as after a restore, is left alone', async () => {
    const blog = await startedBlog()
    await db.pool.query(`drop table ${blog.likes}; create table bystander (id bigint)`)
    // pg_dump writes the number of a table that is no more, and in the new database that may be any other.
    await db.pool.query(`update pgtally.source set source_table = 'bystander'::regclass where queue_id = pgtally.queue_id($1)`, [blog.counter])
    expect(await value(db.pool, 'select pgtally.sync_triggers($1)', [blog.counter])).toBe(0)
    await db.pool.query('insert into bystander values (1)')
    expect(await problems(blog)).not.toEqual([])
    await tally.dropCounter(blog.counter)
  })

  const expressions = { source: { where: `kind = 'like'`, sum: 'weight' } }
  for (const [what, change, options, changed, filled] of [
    ['key column is dropped', 'drop column post_id cascade', {}, undefined, 'weight'],
    ['key column is renamed', 'rename column post_id to post', {}, { source: { key: 'post' } }, 'post'],
    ['column in `where` is dropped', 'drop column kind', expressions, { source: { sum: 'weight' } }, 'post_id'],
    ['column in `where` is renamed', 'rename column kind to sort', expressions, { source: { where: `sort = 'like'`, sum: 'weight' } }, 'post_id'],
    ['column in `sum` is dropped', 'drop column weight', expressions, { source: { where: `kind = 'like'` } }, 'post_id'],
    ['column in `sum` is renamed', 'rename column weight to points', expressions, { source: { where: `kind = 'like'`, sum: 'points' } }, 'post_id'],
    ['column in `sum` is of another type', 'alter column weight drop default, alter column weight type boolean using weight > 0, alter column weight set default true', expressions, { source: { where: `kind = 'like'`, sum: 'weight::int' } }, 'post_id'],
  ] as const) {
    test(`whose ${what}: status says that writes fail, and creating the counter again mends all`, async () => {
      const blog = await startedBlog(options)
      await db.pool.query(`alter table ${blog.likes} ${change}`)
      const insert = (number: number) => db.pool.query(`insert into ${blog.likes} (${filled}) values (${number})`)
      expect(await outcome(insert(2))).toBeInstanceOf(Error)
      expect(await problems(blog)).toEqual([expect.stringMatching(/has changed, so that writes to it fail: .*Drop the counter and create it again/)])
      await expectOthersGoOn()
      await tally.dropCounter(blog.counter)
      await insert(2)
      if (changed === undefined) return
      await tally.createCounter(blog.counter, definition(blog, changed))
      expect(await problems(blog)).toEqual([])
      expect(await tally.counter(blog.counter).audit()).toMatchObject({ driftingKeys: 0 })
      await insert(3)
      await waitFor(async () => (await tally.counter(blog.counter).get(3)) === 1, { what: 'the next like' })
    })
  }
})

describe('triggers of the source', () => {
  for (const [what, change, back] of [
    ['disabled', 'disable trigger user', 'enable trigger user'],
    ['that fire on replicas only', 'enable replica trigger pgtally_ID_insert', 'enable trigger pgtally_ID_insert'],
  ] as const) {
    test(`${what}: status says where, and once they are back a reconciliation makes the count exact`, async () => {
      const blog = await startedBlog()
      const id = await value<number>(db.pool, 'select pgtally.queue_id($1)', [blog.counter])
      await db.pool.query(`alter table ${blog.likes} ${change.replace('ID', String(id))}`)
      await like(db.pool, blog, 4, 2)
      expect(await problems(blog)).toEqual([expect.stringMatching(new RegExp(`disabled on (public\\.)?${blog.likes}: what is written there is not counted.*pgtally reconcile ${blog.counter}`))])
      await expectOthersGoOn()
      await db.pool.query(`alter table ${blog.likes} ${back.replace('ID', String(id))}`)
      expect(await problems(blog)).toEqual([])
      expect(await tally.counter(blog.counter).reconcile()).toMatchObject({ driftingKeys: 1 })
      await expectExact(blog)
    })
  }

  for (const operation of ['insert', 'update', 'delete', 'truncate']) {
    test(`of which that for ${operation} is dropped: status says where, and creating the counter again makes it exact`, async () => {
      const blog = await startedBlog()
      const id = await value<number>(db.pool, 'select pgtally.queue_id($1)', [blog.counter])
      await db.pool.query(`drop trigger pgtally_${id}_${operation} on ${blog.likes}`)
      await db.pool.query(`
        insert into ${blog.likes} (post_id) values (5);
        update ${blog.likes} set post_id = 6 where post_id = 1;
        delete from ${blog.likes} where post_id = 2;
        truncate ${blog.likes};
        insert into ${blog.likes} (post_id) values (7)`)
      await waitFor(async () => (await problems(blog)).some((problem) => /Triggers are missing/.test(problem)), { what: 'status to say so' })
      await createAgain(blog)
      await like(db.pool, blog, 7)
      await expectExact(blog)
      expect(await stored(db.pool, blog)).toEqual({ 7: 2 })
    })
  }
})

describe('the target', () => {
  for (const [what, change, back] of [
    ['key column is renamed', 'rename column id to number', 'rename column number to id'],
    ['count column is renamed', 'rename column like_count to n', 'rename column n to like_count'],
  ] as const) {
    test(`whose ${what}: likes go on, their events wait, and are applied when it is mended`, async () => {
      const blog = await startedBlog()
      await db.pool.query(`alter table ${blog.posts} ${change}`)
      await like(db.pool, blog, 4)
      expect(await problems(blog)).toEqual([expect.stringMatching(/target has changed.*has no column.*Mend that, or drop the counter and create it again/)])
      expect(await lastError(blog)).toMatch(/does not exist/)
      await expectOthersGoOn()
      await db.pool.query(`alter table ${blog.posts} ${back}`)
      expect(await problems(blog)).toEqual([])
      await expectExact(blog)
      expect(await stored(db.pool, blog)).toEqual({ 1: 3, 2: 1, 4: 1 })
    })
  }

  test('whose count column is dropped: likes go on, and creating the counter again counts all', async () => {
    const blog = await startedBlog()
    await db.pool.query(`alter table ${blog.posts} drop column like_count`)
    await like(db.pool, blog, 4)
    expect(await problems(blog)).toEqual([expect.stringMatching(/target has changed.*has no column "like_count"/)])
    await expectOthersGoOn()
    await db.pool.query(`alter table ${blog.posts} add column like_count bigint not null default 0`)
    await createAgain(blog)
    await expectExact(blog)
  })

  test('dropped: likes go on, and the counter can be created again for a new table', async () => {
    const blog = await startedBlog()
    await db.pool.query(`drop table ${blog.posts} cascade`)
    await like(db.pool, blog, 4)
    expect(await problems(blog)).toEqual([expect.stringMatching(/Detached: its target table was dropped.*Drop the counter/)])
    expect(await lastError(blog)).toContain('target table was dropped')
    await expect(tally.counter(blog.counter).audit()).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
    await expectOthersGoOn()
    await db.pool.query(`create table ${blog.posts} (id bigint primary key, like_count integer not null default 100); insert into ${blog.posts} select generate_series(1, 5)`)
    expect(await problems(blog)).toHaveLength(1)
    await createAgain(blog)
    await expectExact(blog)
    expect(await stored(db.pool, blog)).toEqual({ 1: 3, 2: 1, 4: 1 })
  })

  test('without its unique index: status says so, and the counter goes on', async () => {
    const blog = await startedBlog()
    await db.pool.query(`alter table ${blog.posts} drop constraint ${blog.posts}_pkey cascade`)
    await like(db.pool, blog, 4)
    expect(await problems(blog)).toEqual([expect.stringMatching(/has no unique index/)])
    await expectExact(blog)
    await db.pool.query(`alter table ${blog.posts} add primary key (id)`)
    expect(await problems(blog)).toEqual([])
  })
})

describe('status', () => {
  test('answers while a table is locked, and for a role that may not read it', async () => {
    const blog = await startedBlog()
    const session = await db.connect()
    await session.query(`begin; lock table ${blog.likes}, ${blog.posts} in access exclusive mode`)
    expect(await problems(blog)).toEqual([])
    await session.query('rollback')
    const monitor = await db.connect()
    await monitor.query(`create role monitor_of_pgtally; grant usage on schema pgtally to monitor_of_pgtally; grant select on all tables in schema pgtally to monitor_of_pgtally;
      grant execute on all functions in schema pgtally to monitor_of_pgtally; set role monitor_of_pgtally`)
    try {
      expect(await value(monitor, `select problems from pgtally.counter_status() where name = $1`, [blog.counter])).toEqual([])
    } finally {
      await monitor.query('reset role; drop owned by monitor_of_pgtally; drop role monitor_of_pgtally')
    }
  })

  test('answers whatever has become of an expression', async () => {
    await db.pool.query(`create type kind_of_like as enum ('up', 'down'); create function worth(integer) returns integer language sql immutable as 'select $1'`)
    const blog = { counter: 'kinds', posts: 'posts_of_kinds', likes: 'likes_of_kinds' }
    await db.pool.query(`
      create table ${blog.posts} (id bigint primary key, like_count bigint not null default 0);
      create table ${blog.likes} (post_id bigint, kind kind_of_like, weight integer default 1)`)
    await tally.createCounter(blog.counter, definition(blog, { source: { where: `kind = 'up'`, sum: 'public.worth(weight)' } }))
    for (const [change, back] of [
      ['alter type kind_of_like rename value $$up$$ to $$plus$$', 'alter type kind_of_like rename value $$plus$$ to $$up$$'],
      ['alter type kind_of_like rename to sort_of_like', 'alter type sort_of_like rename to kind_of_like'],
      ['alter function worth(integer) rename to value', 'alter function value(integer) rename to worth'],
    ] as const) {
      await db.pool.query(change.replaceAll('$$', `'`))
      expect(await problems(blog)).toEqual([expect.stringMatching(/has changed, so that writes to it fail/)])
      await db.pool.query(back.replaceAll('$$', `'`))
      expect(await problems(blog)).toEqual([])
    }
  })

  test('says when keys have become ones that the queue does not hold', async () => {
    const blog = await startedBlog()
    const narrow = { counter: `${blog.counter}_narrow`, posts: `${blog.posts}_narrow`, likes: `${blog.likes}_narrow` }
    await db.pool.query(`create table ${narrow.posts} (id integer primary key, like_count integer not null default 0); create table ${narrow.likes} (post_id integer); insert into ${narrow.posts} values (1)`)
    await tally.createCounter(narrow.counter, definition(narrow))
    await db.pool.query(`alter table ${narrow.posts} alter id type bigint`)
    expect(await problems(narrow)).toEqual([])
    await db.pool.query(`alter table ${narrow.likes} alter post_id type bigint; insert into ${narrow.posts} values (3000000000)`)
    await expect(like(db.pool, narrow, 3_000_000_000)).rejects.toThrow(/out of range/)
    expect(await problems(narrow)).toEqual([expect.stringMatching(/bigint.*integer.*Drop the counter and create it again/)])
    await createAgain(narrow)
    await like(db.pool, narrow, 3_000_000_000)
    await expectExact(narrow)
  })
})

describe('what looks dangerous but is counted', () => {
  test('TRUNCATE of the posts, with CASCADE', async () => {
    const blog = await startedBlog()
    await like(db.pool, blog, 3)
    await db.pool.query(`truncate ${blog.posts} cascade`)
    await expectExact(blog)
    await db.pool.query(`insert into ${blog.posts} (id) values (1)`)
    await like(db.pool, blog, 1)
    await expectExact(blog)
    expect(await stored(db.pool, blog)).toEqual({ 1: 1 })
  })

  test('deleting posts takes away their likes by cascade', async () => {
    const blog = await createBlog(db, tally, { posts: 500 })
    await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + n % 500 from generate_series(1, 2000) n`)
    const session = await db.connect()
    await session.query(`begin; delete from ${blog.posts} where id % 2 = 0; savepoint s; delete from ${blog.posts} where id % 3 = 0; rollback to s`)
    await like(db.pool, blog, 1, 5)
    expect(await tally.counter(blog.counter).audit()).toMatchObject({ driftingKeys: 0 })
    await session.query('commit')
    await db.pool.query(`delete from ${blog.posts} where id % 5 = 0`)
    expect(await violations(db, blog.counter)).toEqual([])
    await expectExact(blog)
    expect(Object.keys(await stored(db.pool, blog))).toHaveLength(200)
  })

  test('COPY of many rows', async () => {
    const blog = await createBlog(db, tally, { posts: 100 })
    const client = await db.connect()
    const rows = Array.from({ length: 20_000 }, (_, n) => `${1 + ((n * n) % 100)}\n`)
    await pipeline(Readable.from(rows), client.query(copyFrom(`copy ${blog.likes} (post_id) from stdin`)))
    expect(await outcome(pipeline(Readable.from(['1\n', '2\n', 'x\n']), client.query(copyFrom(`copy ${blog.likes} (post_id) from stdin`))))).toBeInstanceOf(Error)
    await expectExact(blog)
    expect(await likeCount(db.pool, blog)).toBe(20_000)
  })
})
