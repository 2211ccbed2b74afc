import { randomBytes, randomUUID } from 'node:crypto'

import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { column, installed, outcome, value } from './support/fixtures.ts'
import { createMemberships, expectCounted, pairs, statements } from './support/memberships.ts'

let db: TestDatabase
let tally: Tally
const roles: string[] = []

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
})

afterAll(async () => {
  for (const role of roles) await db.pool.query(`drop owned by ${role} cascade; drop role ${role}`)
  await db.drop()
})

const pair = { key: 'post_id', member: 'user_id' }
const writerOf = (table: string) => tally.writer({ table, ...pair })

/** A pool of a new role with rights on nothing but what `grants` say of it. */
async function poolOfRole(grants: (role: string) => string): Promise<pg.Pool> {
  const role = `pgtally_test_${randomBytes(6).toString('hex')}`
  await db.pool.query(`create role ${role} login password 'test'`)
  roles.push(role)
  await db.pool.query(grants(role))
  const url = new URL(db.connectionString)
  url.username = role
  url.password = 'test'
  const pool = new pg.Pool({ connectionString: url.href, max: 4 })
  pool.on('error', () => {})
  return pool
}

describe('keys that are written in several ways are one pair', () => {
  test('uuids', async () => {
    await db.pool.query('create table uuids (post_id uuid, user_id uuid, primary key (user_id, post_id))')
    await using likes = writerOf('uuids')
    const [post, user] = [randomUUID(), randomUUID()]
    const spellings = [post, post.toUpperCase(), `{${post}}`, post.replaceAll('-', '')]
    expect(await Promise.all(spellings.map((spelling) => likes.add(spelling, user)))).toEqual([true, false, false, false])
    expect(await Promise.all([likes.remove(post.toUpperCase(), user), likes.add(post, user.toUpperCase()), likes.remove(post, user)])).toEqual([true, true, true])
    expect(await value(db.pool, 'select count(*)::int from uuids')).toBe(0)
  })

  test('whole numbers of every width', async () => {
    await db.pool.query('create domain user_number as smallint check (value <> 13); create table numbers (post_id int, user_id user_number, unique (post_id, user_id))')
    await using likes = writerOf('numbers')
    expect(await Promise.all([likes.add('01', 7), likes.add(1, '+7'), likes.add(1n, ' 007 '), likes.add('-0', 0), likes.add(-0, '0'), likes.add('-5', '-05')])).toEqual([true, false, false, true, false, true])
    expect(await Promise.all([likes.remove(' 1', 7n), likes.add(1, 7), likes.remove('1', '7')])).toEqual([true, true, true])
    expect(await column(db.pool, 'select row(l.*)::text from numbers l order by 1')).toEqual(['(-5,-5)', '(0,0)'])
    await using big = tally.writer<bigint, bigint>({ table: (await createMemberships(db, tally)).likes, ...pair })
    await expect(big.add(1n, 2n ** 63n)).rejects.toMatchObject({ code: '22003' })
    expect(await big.add(1n, 2n ** 63n - 1n)).toBe(true)
    expect(await big.remove(1n, 2n ** 63n - 1n)).toBe(true)
  })

  test('texts, which are not: only half a character is like the other half', async () => {
    await db.pool.query('create table texts (post_id text, user_id varchar(20), primary key (post_id, user_id))')
    await using likes = writerOf('texts')
    const posts = ['a', 'A', '', ' a', 'a ', 'NULL', '{a,b}', '"', '\\', `'`, 'é', 'e\u0301', '1', '01', '\ufffd']
    expect(await Promise.all(posts.map((post) => likes.add(post, 'x')))).toEqual(posts.map(() => true))
    expect(await Promise.all([likes.add('\ud800', 'x'), likes.add('\udbff', 'y'), likes.add('\ud801', 'y'), likes.remove('\ufffd', 'y')])).toEqual([false, true, false, true])
    expect(new Set(await column(db.pool, 'select post_id from texts'))).toEqual(new Set(posts))
    expect(await Promise.all(posts.map((post) => likes.remove(post, 'x')))).toEqual(posts.map(() => true))
  })
})

describe('a call that will not do fails alone, and the others go through', () => {
  test('what the server objects to: with its error, and as few statements as may be', async () => {
    const blog = await createMemberships(db, tally, `kind text check (kind <> 'bad'), slug varchar(8) unique, n int not null default 7,`)
    await db.pool.query(`
      create function ${blog.likes}_check() returns trigger language plpgsql as $$
      begin
        if new.user_id >= 900000 then raise exception 'no %', new.user_id using errcode = (array['P0001', '01234', 'UR001', '23514', '42501'])[new.user_id - 899999]; end if;
        return new;
      end $$;
      create trigger check_user before insert on ${blog.likes} for each row execute function ${blog.likes}_check();
      create table ${blog.likes}_late (post_id bigint, user_id bigint);
      create function ${blog.likes}_at_commit() returns trigger language plpgsql as $$ begin raise 'late' using errcode = '23503'; end $$;
      create constraint trigger at_commit after insert on ${blog.likes} deferrable initially deferred for each row when (new.user_id = 777) execute function ${blog.likes}_at_commit()`)
    await using likes = tally.writer<number, number, 'kind' | 'slug' | 'n'>({ table: blog.likes, ...pair, columns: ['kind', 'slug', 'n'] })
    const fine = { kind: null, slug: null, n: 1 }
    await Promise.all([likes.add(1, 1, { ...fine, slug: 'taken' }), likes.add(1, 2, fine)])
    const good = Array.from({ length: 300 }, (_, user) => likes.add(2, 1000 + user, fine))
    const calls: [code: string, Promise<boolean>][] = [
      ['23503', likes.add(404, 1, fine)],
      ['23502', likes.add(3, 1, { ...fine, n: null })],
      ['23514', likes.add(3, 2, { ...fine, kind: 'bad' })],
      ['23505', likes.add(3, 3, { ...fine, slug: 'taken' })],
      ['22001', likes.add(3, 4, { ...fine, slug: 'far too long' })],
      ['22P02', likes.add(3, 5, { ...fine, n: 'seven' })],
      ['22003', likes.add(3, 6, { ...fine, n: 2 ** 40 })],
      ['22021', likes.add(3, 7, { ...fine, kind: 'a\u0000b' })],
      ['23503', likes.add(3, 777, fine)],
      ['P0001', likes.add(3, 900_000, fine)],
      ['01234', likes.add(3, 900_001, fine)],
      ['UR001', likes.add(3, 900_002, fine)],
      ['42501', likes.add(3, 900_004, fine)],
    ]
    const bad = calls.map(([code, call]) => [code, outcome(call)] as const)
    const removed = likes.remove(1, 2)
    for (const [code, call] of bad) expect([code, await call]).toMatchObject([code, { code }])
    expect(new Set(await Promise.all([...good, removed]))).toEqual(new Set([true]))
    expect(await pairs(db, blog)).toHaveLength(301)
    expect((await statements(db, blog, 'insert')).length).toBeLessThan(200)
    await expectCounted(db, tally, blog)
  })

  test('a text that no index takes, and one that the server cannot read', async () => {
    await db.pool.query('create table long_texts (post_id text, user_id text, primary key (post_id, user_id))')
    await using likes = writerOf('long_texts')
    const long = randomBytes(9000).toString('base64')
    const calls = [likes.add('a', '1'), likes.add(long, '1'), likes.add('b', 'nul\u0000'), likes.add('c', '1')].map((call) => outcome(call))
    expect(await Promise.all(calls)).toMatchObject(['done', { code: '54000' }, { code: '22021' }, 'done'])
    expect(await column(db.pool, 'select post_id from long_texts order by 1')).toEqual(['a', 'c'])
  })

  test('what is no key, or no value, is not even sent', async () => {
    const blog = await createMemberships(db, tally, 'data jsonb, tags text[],')
    await using likes = tally.writer({ table: blog.likes, ...pair, columns: ['data', 'tags'] })
    const fine = { data: null, tags: null }
    const circular: Record<string, unknown> = {}
    circular['self'] = circular
    const add = likes.add.bind(likes) as (...args: unknown[]) => Promise<boolean>
    for (let round = 0; round < 2; round++) {
      const keys = [null, undefined, 1.5, Number.NaN, 2 ** 53, {}, '', 'x', '1 2', '0x1f', '9'.repeat(20), true]
      const calls = keys.flatMap((key) => [add(key, 1, fine), add(1, key, fine), likes.remove(key as string, 1)].map((call) => [String(key), outcome(call)] as const))
      for (const [key, call] of calls) {
        const error = await call
        expect([key, error]).toMatchObject([key, { code: 'INVALID_ARGUMENT', message: expect.stringMatching(new RegExp(`_id of "${blog.likes}".*bigint`)) }])
        expect((error as Error).message).toContain(key)
      }
      for (const [name, values] of [['data', undefined], ['data', {}], ['tags', { data: 1, tag: [] }], ['data', { data: circular, tags: [] }], ['data', { data: { n: 1n }, tags: null }], ['tags', { data: null, tags: ['a', undefined] }], ['data', { data: () => 1, tags: [] }]] as const) {
        expect(await outcome(add(1, 1, values))).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(`"${name}" of "${blog.likes}"`) })
      }
      expect(await likes.add(1, round, { data: [1], tags: [] })).toBe(true)
    }
    expect(await statements(db, blog, 'insert')).toEqual([1, 1])
  })
})

describe('other columns', () => {
  test('arrive as pg would send them one by one', async () => {
    const columns = {
      tags: 'text[]', grid: 'int[]', days: 'date[]', data: 'jsonb', text_data: 'json', parts: 'jsonb[]', at: 'timestamptz', local: 'timestamp', day: 'date', price: 'numeric(10,2)', flag: 'boolean', bytes: 'bytea',
      code: 'char(3)', bits: 'bit(4)', letter: '"char"', span: 'int4range', mood: '"Odd mood"', wait: 'interval', ratio: 'float8', name: 'varchar(10)', tag_list: 'tag_list', ip: 'inet',
    } as const
    type Name = keyof typeof columns
    const names = Object.keys(columns) as Name[]
    const list = names.map((name) => `${name} ${columns[name]}`).join(', ')
    await db.pool.query(`create type "Odd mood" as enum ('so so', 'fine'); create domain tag_list as text[];
      create table wide (post_id int, user_id int, ${list}, extra text default 'default', primary key (post_id, user_id)); create table wide_single (like wide including all)`)
    await using likes = tally.writer<number, number, Name>({ table: 'wide', ...pair, columns: names })
    const some = {
      tags: ['a', 'b,c', '"', null, '{}', 'NULL'], grid: [[1, 2], [3, 4]], days: [new Date(2024, 1, 29)], data: { a: [1, 'x'], b: null }, text_data: '{"z": 1, "a": 2}', parts: [{ a: 1 }, { b: [2] }], at: new Date('2024-02-29T12:34:56.789Z'),
      local: new Date('2024-02-29T12:34:56.789Z'), day: new Date(2024, 1, 29), price: '12.34', flag: true, bytes: Buffer.from([0, 255, 92]), code: 'abc', bits: '1010', letter: 'x', span: '[1,5)', mood: 'so so', wait: '1 day',
      ratio: 0.1, name: 'ten chars!', tag_list: ['x', 'y'], ip: '10.0.0.1',
    } satisfies Record<Name, unknown>
    const none = Object.fromEntries(names.map((name) => [name, null])) as Record<Name, null>
    const empty = { ...none, tags: [], grid: [], data: {}, code: 'a', flag: false, bytes: Buffer.alloc(0), ratio: -0, name: '', tag_list: [] }
    const rows = [some, none, empty, { ...some, data: 5, price: 7, mood: 'fine' }]
    expect(await Promise.all(rows.map((row, index) => likes.add(1, index, row)))).toEqual([true, true, true, true])
    const single = `insert into wide_single (post_id, user_id, ${names.join(', ')}) values (1, $1, ${names.map((_, index) => `$${index + 2}`).join(', ')})`
    for (const [index, row] of rows.entries()) await db.pool.query(single, [index, ...names.map((name) => row[name])])
    expect(await value(db.pool, 'select count(*)::int from wide w join wide_single s using (post_id, user_id) where (w.*)::text = (s.*)::text')).toBe(4)
    expect(await value(db.pool, `select count(*)::int from wide where extra = 'default'`)).toBe(4)
    // This pg would send as an array of PostgreSQL's.
    await likes.add(2, 1, { ...none, data: [1, [2], { a: null }], text_data: [] })
    expect(await value(db.pool, 'select data::text || text_data from wide where post_id = 2')).toBe('[1, [2], {"a": null}][]')
  })

  test('are taken when the call is made, and left as they are where the row is there', async () => {
    const blog = await createMemberships(db, tally, 'data jsonb, tags text[],')
    await using likes = tally.writer({ table: blog.likes, ...pair, columns: ['data', 'tags'] })
    await likes.add(9, 9, { data: null, tags: null })
    const [data, tags] = [{ n: 1 }, ['a', ['b']]]
    const added = likes.add(1, 1, { data, tags: [tags[0] ?? ''] })
    data.n = 2
    tags.push('c')
    expect(await added).toBe(true)
    expect(await likes.add(1, 1, { data: { n: 3 }, tags: [] })).toBe(false)
    expect(await value(db.pool, `select data::text || tags::text from ${blog.likes} where post_id = 1`)).toBe('{"n": 1}{a}')
  })
})

describe('tables', () => {
  test('partitioned, in another schema, with odd names, without a primary key', async () => {
    await db.pool.query(`
      create schema "Far away";
      create table "Far away"."Likes, all" ("Post" text, "user ""x""" uuid, "At $1" timestamptz, unique ("user ""x""", "Post")) partition by hash ("Post");
      create table "Far away".p0 partition of "Far away"."Likes, all" for values with (modulus 2, remainder 0);
      create table "Far away".p1 partition of "Far away"."Likes, all" for values with (modulus 2, remainder 1)`)
    await using likes = tally.writer<string, string, 'At $1'>({ table: '"Far away"."Likes, all"', key: 'Post', member: 'user "x"', columns: ['At $1'] })
    await tally.createCounter('far', { source: { table: '"Far away"."Likes, all"', key: 'Post' }, target: undefined })
    const users = Array.from({ length: 50 }, () => randomUUID())
    expect(new Set(await Promise.all(users.map((user, n) => likes.add(`post ${n % 7}`, user, { 'At $1': new Date() }))))).toEqual(new Set([true]))
    expect(new Set(await Promise.all(users.slice(10).map((user, n) => likes.remove(`post ${(n + 10) % 7}`, user))))).toEqual(new Set([true]))
    expect(await column(db.pool, 'select distinct tableoid::regclass::text from "Far away"."Likes, all" order by 1')).toEqual(['"Far away".p0', '"Far away".p1'])
    expect(await value(db.pool, `select min("At $1") > now() - interval '1 hour' from "Far away"."Likes, all"`)).toBe(true)
    expect(await tally.counter('far').audit()).toMatchObject({ driftingKeys: 0 })
    expect((await tally.counter<string>('far').get('post 0', { fresh: true })).count).toBe(2)
  })

  test('that will not do: every call says why', async () => {
    await db.pool.query(`
      create collation caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      create table plain (post_id int, user_id int, other int, stamp timestamptz, label text collate caseless);
      create view plain_view as table plain;
      create table bare (post_id int, user_id int);
      create table loose (post_id int, user_id int, other int, unique (post_id, user_id, other));
      create table partial (post_id int, user_id int); create unique index on partial (post_id, user_id) where post_id > 0;
      create table late (post_id int, user_id int, unique (post_id, user_id) deferrable);
      create table expression (post_id int, user_id int); create unique index on expression (post_id, abs(user_id));
      create table computed (post_id int, user_id int, twice int generated always as (post_id * 2) stored, id int generated always as identity, primary key (post_id, user_id));
      create temporary table fleeting (post_id int, user_id int, primary key (post_id, user_id))`)
    const refused: [RegExp, Parameters<Tally['writer']>[0]][] = [
      [/no table "nowhere".*schema/, { table: 'nowhere', ...pair }],
      [/no table "far.away"/, { table: 'far.away', ...pair }],
      [/table "a b c"/, { table: 'a b c', ...pair }],
      [/"plain_view" is a view/, { table: 'plain_view', ...pair }],
      [/"plain" has no column "x"/, { table: 'plain', ...pair, columns: ['x'] as never }],
      [/"plain" has no column "Post_id"/, { table: 'plain', key: 'Post_id', member: 'user_id' }],
      [/"stamp".*timestamp/, { table: 'plain', key: 'stamp', member: 'user_id' }],
      [/"label".*collation/, { table: 'plain', key: 'post_id', member: 'label' }],
      ...['bare', 'loose', 'partial', 'late', 'expression'].map((table): [RegExp, Parameters<Tally['writer']>[0]] => [new RegExp(`"${table}" has no unique index.*ADD UNIQUE \\(post_id, user_id\\)`), { table, ...pair }]),
      [/"twice".*Leave it out/, { table: 'computed', ...pair, columns: ['twice'] as never }],
      [/"id".*Leave it out/, { table: 'computed', ...pair, columns: ['id'] as never }],
    ]
    for (const [message, options] of refused) {
      await using likes = tally.writer(options)
      const calls = [likes.remove(1, 1), likes.remove(1, 1), likes.remove(1, 2)].map((call) => outcome(call))
      for (const error of await Promise.all(calls)) expect(error).toMatchObject({ name: 'PgtallyError', code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) })
    }
    const single = new pg.Pool({ connectionString: db.connectionString, max: 1 })
    await single.query('create temporary table fleeting (post_id int, user_id int, primary key (post_id, user_id))')
    await expect(createTally({ pool: single }).writer({ table: 'fleeting', ...pair }).add(1, 1)).rejects.toMatchObject({ message: expect.stringContaining('temporary') })
    await single.end()
  })

  test('may come later, go, come back otherwise, and grow wider while a writer runs', async () => {
    await using likes = tally.writer<number, number>({ table: 'moving', ...pair })
    const absent = { code: 'INVALID_ARGUMENT', message: expect.stringContaining('"moving"') }
    expect(await Promise.all([outcome(likes.add(1, 1)), outcome(likes.remove(1, 1))])).toMatchObject([absent, absent])
    await db.pool.query('create table moving (post_id int, user_id int, primary key (post_id, user_id))')
    expect(await likes.add(1, 1)).toBe(true)
    await expect(likes.add(2 ** 40, 1)).rejects.toMatchObject({ code: '22003' })
    await db.pool.query('alter table moving alter post_id type bigint')
    expect(await likes.add(2 ** 40, 1)).toBe(true)
    await db.pool.query('drop table moving')
    await expect(likes.add(1, 1)).rejects.toMatchObject({ code: '42P01' })
    await expect(likes.add(1, 1)).rejects.toMatchObject(absent)
    await db.pool.query('create table moving (post_id text, user_id uuid, primary key (post_id, user_id))')
    await expect(likes.add(1, 2)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('uuid') })
    await db.pool.query('drop table moving; create table moving (post_id int, user_id int)')
    await outcome(likes.add(1, 1))
    await outcome(likes.add(1, randomUUID() as never))
    await expect(likes.add(1, 1)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('unique') })
    await db.pool.query('alter table moving add primary key (post_id, user_id)')
    expect(await likes.add(1, 1)).toBe(true)
  })

  test('stay the same table, whatever the search path of a session', async () => {
    await db.pool.query(`create table pathless (post_id int, user_id int, primary key (post_id, user_id)); create schema elsewhere;
      create table elsewhere.pathless (like pathless including all)`)
    const client = await db.pool.connect()
    client.release()
    await using likes = writerOf('pathless')
    await likes.add(1, 1)
    const connections = await Promise.all(Array.from({ length: 10 }, () => db.pool.connect()))
    for (const connection of connections) await connection.query('set search_path = elsewhere')
    for (const connection of connections) connection.release()
    await likes.add(1, 2)
    await likes.remove(1, 1)
    for (const connection of connections) await connection.query('reset search_path')
    expect(await column(db.pool, 'select tableoid::regclass::text || user_id from (select tableoid, user_id from elsewhere.pathless union all select tableoid, user_id from public.pathless) t')).toEqual(['pathless2'])
  })
})

describe('rights', () => {
  test('to read, insert and delete are enough; without them each call says so', async () => {
    const blog = await createMemberships(db, tally)
    await db.pool.query(`alter function ${blog.likes}_log security definer`)
    const pool = await poolOfRole((role) => `grant select, insert, delete on ${blog.likes} to ${role}`)
    await using likes = createTally({ pool }).writer<number, number>({ table: blog.likes, ...pair })
    expect(await Promise.all([likes.add(1, 1), likes.add(1, 2), likes.remove(1, 3)])).toEqual([true, true, false])
    expect(await Promise.all([likes.add(1, 3), likes.remove(1, 1)])).toEqual([true, true])
    const role = roles.at(-1)
    await db.pool.query(`revoke delete on ${blog.likes} from ${role}`)
    expect(await Promise.all([likes.remove(1, 2), likes.remove(1, 3)].map((call) => outcome(call)))).toMatchObject([{ code: '42501' }, { code: '42501' }])
    expect(await likes.add(1, 4)).toBe(true)
    // What may be done is looked up again, too.
    await db.pool.query(`grant update, delete on ${blog.likes} to ${role}`)
    await using other = createTally({ pool }).writer<number, number>({ table: blog.likes, ...pair })
    expect(await other.remove(1, 2)).toBe(true)
    await db.pool.query(`revoke update on ${blog.likes} from ${role}`)
    await outcome(other.remove(1, 3))
    expect(await other.remove(1, 3)).toBe(true)
    await other.close()
    await likes.close()
    await pool.end()
    await expectCounted(db, tally, blog)
  })

  test('to rows go by their policies, also where there is none for updates', async () => {
    await db.pool.query(`
      create table guarded (post_id int, user_id int, primary key (post_id, user_id));
      alter table guarded enable row level security;
      create policy reading on guarded for select using (true);
      create policy adding on guarded for insert with check (user_id < 100);
      create policy removing on guarded for delete using (post_id = 1)`)
    const pool = await poolOfRole((role) => `grant select, insert, update, delete on guarded to ${role}`)
    await using likes = createTally({ pool }).writer<number, number>({ table: 'guarded', ...pair })
    const calls = [likes.add(1, 1), likes.add(1, 100), likes.add(2, 2)].map((call) => outcome(call))
    expect(await Promise.all(calls)).toMatchObject(['done', { code: '42501' }, 'done'])
    expect(await Promise.all([likes.remove(1, 1), likes.remove(2, 2)])).toEqual([true, false])
    await likes.close()
    await pool.end()
  })
})
