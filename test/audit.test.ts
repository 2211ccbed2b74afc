import { setTimeout as sleep } from 'node:timers/promises'

import { beforeAll, describe, expect, test } from 'vitest'

import type { CounterDefinition, Measurement, MeasureProgress, Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, blocked, column, createBlog, installed, like, outcome, pid, value, violations, type Blog, type Session } from './support/fixtures.ts'
import { beside, expectExact, seed, startCommand, storm } from './support/storm.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

interface Range {
  last_key: string | null
  checked_keys: string
  drifting_keys: string
  drifting: { key: string; source: string; stored: string; carried: string; pending: string }[]
}

/** All ranges of an audit, by SQL, each in a transaction of its own. */
async function ranges(counter: string, maxKeys: number | null): Promise<Range[]> {
  const found: Range[] = []
  let after: string | null = null as string | null
  do {
    const { rows } = await db.pool.query<Range, unknown[]>('select * from pgtally.audit_range($1, $2, $3)', [counter, after, maxKeys])
    found.push(...rows)
    after = rows[0]?.last_key ?? null
    if (after !== null && found.filter((one) => one.last_key === after).length > 1) throw new Error(`The ranges go round in circles, at the key ${after}.`)
  } while (after !== null)
  return found
}

const sum = (numbers: (string | number)[]) => numbers.reduce<number>((total, number) => total + Number(number), 0)
const driftsByKey = ({ drifts }: Measurement) => Object.fromEntries(drifts.map(({ key, drift }) => [key, drift]))
const clean = { driftingKeys: 0, drifts: [] }
const counterTable = (counter: string, prefix: 'carry' | 'count') => value<string>(db.pool, `select 'pgtally.${prefix}_' || counter_id from pgtally.counter where name = $1`, [counter])
const eventTable = (counter: string) => value<string>(db.pool, `select 'pgtally.event_' || queue_id from pgtally.counter join pgtally.consumer c on consumer_id = counter_id where c.name = $1`, [counter])

let number = 0
const uniqueName = (prefix: string) => `${prefix}_${++number}`

/** Posts and likes without a counter: `counted` says how many likes each key has, `posts` which keys have a row, and its count. */
async function createTables({ key = 'bigint', targetKey = key, counted, posts, index = '(key)' }: {
  key?: string
  targetKey?: string
  counted: Record<string, number>
  posts: Record<string, number>
  index?: string | null
}): Promise<{ source: { table: string; key: string }; target: { table: string; key: string; column: string } }> {
  const [source, target] = [uniqueName('source'), uniqueName('target')]
  await db.pool.query(`create table ${source} (id bigint generated always as identity primary key, key ${key}, kind text, weight integer);
    create table ${target} (key ${targetKey} primary key, n integer, other bigint)`)
  if (index !== null) await db.pool.query(`create index on ${source} ${index}`)
  await db.pool.query(`insert into ${source} (key) select u.key::${key.split(' ')[0]} from jsonb_each_text($1) u(key, times), generate_series(1, u.times::integer)`, [counted])
  await db.pool.query(`insert into ${target} (key, n) select u.key::${targetKey.split(' ')[0]}, u.n::integer from jsonb_each_text($1) u(key, n)`, [posts])
  return { source: { table: source, key: 'key' }, target: { table: target, key: 'key', column: 'n' } }
}

async function createCounter(definition: CounterDefinition, options?: { backfill?: boolean }): Promise<string> {
  const name = uniqueName('counter')
  await tally.createCounter(name, definition, options)
  return name
}

const range = (from: number, to: number, step = 1) => Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, index) => from + index * step)
const each = (keys: number[], n: number) => Object.fromEntries(keys.map((key) => [key, n]))
// Reserved in literals, arrays, JSON, format() and regular expressions, and sorted differently by different collations.
const oddTexts = ['', ' ', 'a', 'A', 'B', `it's`, `''`, `"quoted"`, 'back\\slash', '\\', '100% %s %1$L', '{a,b}', '{}', 'NULL', 'null', 'new\nline', '$1', '_', 'Ä', 'z', '\u{1f44d}', '--']

describe('keys', () => {
  const numbers = ['-32768', '-1', '0', '7', '32767']
  const types: [what: string, sourceKey: string, targetKey: string, keys: string[], onlyInTarget?: string[]][] = [
    ['smallint', 'smallint', 'smallint', numbers],
    ['integer', 'integer', 'integer', ['-2147483648', ...numbers, '2147483647']],
    ['bigint', 'bigint', 'bigint', ['-9223372036854775808', ...numbers, '9007199254740993', '9223372036854775807']],
    ['smallint, of integer posts', 'smallint', 'integer', numbers, ['2147483647']],
    ['integer, of bigint posts', 'integer', 'bigint', numbers, ['9007199254740993']],
    ['bigint, of smallint posts', 'bigint', 'smallint', numbers],
    ['uuid', 'uuid', 'uuid', ['00000000-0000-0000-0000-000000000000', '5ac7e3b0-1111-4000-8000-00000000000a', '5ac7e3b0-1111-4000-8000-00000000000b', 'ffffffff-ffff-ffff-ffff-ffffffffffff']],
    ['text', 'text', 'text', oddTexts],
    ['varchar', 'varchar(60)', 'varchar(80)', oddTexts],
    ['text, of varchar posts', 'text', 'varchar', oddTexts],
    ['text of another collation than the posts', 'text', 'text collate "und-x-icu"', oddTexts],
    ['text whose collation the posts have not', 'varchar collate "und-x-icu"', 'text collate "C"', oddTexts],
    ['text, both of a collation of their own', 'text collate "de-x-icu"', 'text collate "und-x-icu"', oddTexts],
  ]
  for (const [what, sourceKey, targetKey, keys, onlyInTarget = []] of types) {
    test(`${what}: each is compared once, whatever the ranges, and corrected`, async (context) => {
      if (/icu/.test(sourceKey + targetKey) && !(await value(db.pool, `select exists (select from pg_collation where collname = 'und-x-icu')`))) context.skip('needs ICU')
      const counted = Object.fromEntries(keys.map((key, index) => [key, 1 + (index % 3)]))
      const posts = Object.fromEntries([...keys, ...onlyInTarget].map((key) => [key, 0]))
      const { source, target } = await createTables({ key: sourceKey, targetKey, counted, posts })
      // One index for the order of the posts' keys, one for that of pgtally's own table.
      if (/collate/.test(sourceKey + targetKey)) await db.pool.query(`create index on ${source.table} (key ${/collate .*/.exec(targetKey)?.[0] ?? 'collate "default"'}); create index on ${source.table} (key collate "default")`)
      const inColumn = await createCounter({ source, target })
      const inOwnTable = await createCounter({ source })
      expect(await tally.drain()).toMatchObject({ failed: [] })
      const cases: [counter: string, table: string, count: string, expected: string[]][] = [
        [inColumn, target.table, target.column, [...keys, ...onlyInTarget]],
        [inOwnTable, await counterTable(inOwnTable, 'count'), 'value', keys],
      ]
      for (const [name, table, count, expected] of cases) {
        const counter = tally.counter(name)
        expect(await counter.audit()).toEqual({ counter: name, checkedKeys: expected.length, ...clean })
        // Then everything drifts, so that whatever is compared is listed.
        await db.pool.query(`update ${table} set ${count} = coalesce(${count}, 0) + 1`)
        for (const maxKeys of [2, null]) {
          const found = await ranges(name, maxKeys)
          expect(found.flatMap(({ drifting }) => drifting.map(({ key }) => key)).toSorted()).toEqual(expected.toSorted())
          expect(sum(found.map((one) => one.checked_keys))).toBe(expected.length)
          expect(sum(found.map((one) => one.drifting_keys))).toBe(expected.length)
          expect(found.length).toBeGreaterThanOrEqual(maxKeys === null ? 1 : expected.length / maxKeys)
        }
        expect(driftsByKey(await counter.audit())).toEqual(Object.fromEntries(expected.map((key) => [key, -1])))
        const some = [expected[0] ?? '', expected.at(-1) ?? '']
        expect(driftsByKey(await counter.audit({ keys: some }))).toEqual(Object.fromEntries(some.map((key) => [key, -1])))
        const audited = await db.pool.query<{ key: string; source: string }>('select * from pgtally.audit($1)', [name])
        expect(Object.fromEntries(audited.rows.map((row) => [row.key, Number(row.source)]))).toEqual(Object.fromEntries(expected.map((key) => [key, counted[key] ?? 0])))

        expect(driftsByKey(await counter.reconcile({ keys: some }))).toEqual(Object.fromEntries(some.map((key) => [key, -1])))
        expect(await counter.reconcile()).toMatchObject({ driftingKeys: expected.length - some.length })
        expect(await tally.drain()).toMatchObject({ failed: [] })
        expect(await counter.audit()).toEqual({ counter: name, checkedKeys: expected.length, ...clean })
        const { rows } = await db.pool.query<{ key: string; n: string }>(`select key::text, ${count} as n from ${table}`)
        expect(Object.fromEntries(rows.map(({ key, n }) => [key, Number(n)]))).toEqual(Object.fromEntries(expected.map((key) => [key, counted[key] ?? 0])))
      }
    })
  }

  test('NULL in a unique column of the target is no key', async () => {
    const source = await createTables({ counted: { 1: 2 }, posts: {} })
    const table = uniqueName('nullable')
    await db.pool.query(`create table ${table} (key bigint unique, n bigint); insert into ${table} values (1, 0), (null, 5), (null, 0)`)
    const counter = await createCounter({ source: source.source, target: { table, key: 'key', column: 'n' } })
    await tally.drain()
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 1, ...clean })
    expect(await column(db.pool, `select n::int from ${table} order by key, n`)).toEqual([2, 0, 5])
  })

  const sizes: [what: string, source: number[], target: number[]][] = [
    ['dense in the source and sparse in the target', range(1, 30), range(10, 30, 10)],
    ['sparse in the source and dense in the target', range(10, 30, 10), range(1, 30)],
    ['by turns in source and target', range(1, 30, 2), range(2, 30, 2)],
    ['in the source first and in the target last', range(1, 12), range(13, 24)],
    ['in the target only', [], range(1, 20)],
    ['in the source only', range(1, 20), []],
  ]
  for (const [what, inSource, inTarget] of sizes) {
    test(`that are ${what}: each is compared once, whatever the ranges and whatever is missing`, async () => {
      const tables = await createTables({ counted: each(inSource, 3), posts: each(inTarget, 100) })
      const union = [...new Set([...inSource, ...inTarget])]
      for (const onMissing of ['drop', 'insert', 'error'] as const) {
        const counter = await createCounter({ ...tables, onMissing }, { backfill: false })
        const expected = onMissing === 'drop' ? inTarget : union
        for (const maxKeys of [1, 7, 1000]) {
          const found = await ranges(counter, maxKeys)
          expect(found.flatMap(({ drifting }) => drifting.map(({ key }) => Number(key)))).toEqual(expected.toSorted((a, b) => a - b))
          // max_keys of the target, and beside these as many of the source at most.
          for (const { checked_keys: checked } of found) expect(Number(checked)).toBeLessThanOrEqual(onMissing === 'drop' ? maxKeys : 2 * maxKeys)
          expect(sum(found.map((one) => one.checked_keys))).toBe(expected.length)
        }
        await tally.dropCounter(counter)
      }
    })
  }

  test('that are neither in source nor target, but carried or pending, are compared where they may have a row', async () => {
    const { source, target } = await createTables({ counted: { 5: 1 }, posts: { 5: 1 } })
    const counter = await createCounter({ source, target, onMissing: 'insert' })
    await db.pool.query(`insert into ${await eventTable(counter)} (ev_slot, ev_key, ev_delta) values (0, 1, 3), (1, 9, -4); insert into ${await counterTable(counter, 'carry')} (key, delta, events) values (4, 7, 1)`)
    for (const maxKeys of [1, 1000]) {
      const found = await ranges(counter, maxKeys)
      expect(found.flatMap(({ drifting }) => drifting)).toEqual([
        { key: '1', source: '0', stored: '0', carried: '0', pending: '3', drift: '-3' },
        { key: '4', source: '0', stored: '0', carried: '7', pending: '0', drift: '-7' },
        { key: '9', source: '0', stored: '0', carried: '0', pending: '-4', drift: '4' },
      ])
    }
    await tally.dropCounter(counter)
    const dropping = await createCounter({ source, target })
    await db.pool.query(`insert into ${await eventTable(dropping)} (ev_slot, ev_key, ev_delta) values (0, 1, 3)`)
    expect(await tally.counter(dropping).audit()).toMatchObject({ checkedKeys: 1, ...clean })
    expect(await tally.counter(dropping).audit({ keys: [1, 5, 77] })).toMatchObject({ checkedKeys: 1, ...clean })
  })

  test('of a source that has no index on them are one range; with one they are many', async () => {
    const tables = await createTables({ counted: each(range(1, 50), 1), posts: each(range(1, 50), 0), index: null })
    const counter = await createCounter(tables, { backfill: false })
    expect(await ranges(counter, 1)).toMatchObject([{ last_key: null, checked_keys: '50', drifting_keys: '50' }])
    for (const unfit of ['(key) where id > 3', '(id, key)', '((key + 0))']) await db.pool.query(`create index on ${tables.source.table} ${unfit}`)
    await db.pool.query(`create index on ${tables.source.table} using hash (key)`)
    expect(await ranges(counter, 1)).toHaveLength(1)
    await db.pool.query(`create index on ${tables.source.table} (key, id)`)
    expect((await ranges(counter, 1)).length).toBeGreaterThanOrEqual(50)
  })

  test('that rows have none of are not compared', async () => {
    const tables = await createTables({ counted: { 1: 1 }, posts: { 1: 0 } })
    await db.pool.query(`insert into ${tables.source.table} (key) values (null), (null)`)
    const counters = [await createCounter(tables), await createCounter({ source: tables.source })]
    await tally.drain()
    for (const counter of counters) expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 1, ...clean })
  })
})

describe('what is counted', () => {
  test('with where and sum: the rows for which it is true, and their sum', async () => {
    const { source, target } = await createTables({ counted: {}, posts: { 1: 0, 2: 0, 3: 0 } })
    const insert = (values: string) => db.pool.query(`insert into ${source.table} (key, kind, weight) values ${values}`)
    await insert(`(1, 'like', 5), (1, 'view', 7), (1, 'like', null), (2, 'like', -3), (2, null, 4), (3, 'view', 1)`)
    const counter = await createCounter({ source: { ...source, where: `kind = 'like'`, sum: 'weight' }, target })
    await insert(`(1, 'like', 10), (3, 'like', 0)`)
    await db.pool.query(`update ${source.table} set kind = 'like' where kind = 'view' and key = 1; update ${source.table} set weight = weight * 2 where key = 2`)
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 3, ...clean })
    await tally.drain()
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 3, ...clean })
    expect(await column(db.pool, `select n from ${target.table} order by key`)).toEqual([22, -6, 0])
    await db.pool.query(`update ${target.table} set n = null where key = 1; update ${target.table} set n = -7 where key = 2`)
    expect(await tally.counter(counter).audit()).toMatchObject({
      drifts: [
        { key: '1', source: 22, stored: 0, carried: 0, pending: 0, drift: 22 },
        { key: '2', source: -6, stored: -7, carried: 0, pending: 0, drift: 1 },
      ],
    })
  })

  test('is the sum of stored, carried and pending, each shown', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 5)
    await apply(db.pool, blog.counter)
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for update`)
    await db.pool.query(`delete from ${blog.likes} where id in (select min(id) from ${blog.likes})`)
    await apply(db.pool, blog.counter)
    await db.pool.query(`insert into ${blog.likes} (post_id) values (2)`)
    const liker = db.pool.query(`insert into ${blog.likes} (post_id) select 1 from generate_series(1, 3)`)
    await db.pool.query(`update ${blog.posts} set like_count = 2 where id = 2`)
    // The foreign key makes the like wait, so there is nothing of it yet.
    expect(await tally.counter(blog.counter).audit()).toMatchObject({ checkedKeys: 10, drifts: [{ key: '2', source: 1, stored: 2, carried: 0, pending: 1, drift: -2 }] })
    await holder.query('rollback')
    await liker
    await db.pool.query(`update ${blog.posts} set like_count = like_count + 1 where id = 1`)
    expect(await tally.counter(blog.counter).audit({ keys: [1] })).toMatchObject({ checkedKeys: 1, drifts: [{ key: '1', source: 7, stored: 6, carried: -1, pending: 3, drift: -1 }] })
  })

  test('in a partitioned source and a partitioned target', async () => {
    await db.pool.query(`
      create table part_posts (id bigint primary key, n bigint not null default 0) partition by range (id);
      create table part_posts_1 partition of part_posts for values from (1) to (6);
      create table part_posts_2 partition of part_posts for values from (6) to (100);
      insert into part_posts select generate_series(1, 10);
      create table part_likes (post_id bigint, day integer) partition by list (day);
      create table part_likes_1 partition of part_likes for values in (1);
      create table part_likes_2 partition of part_likes default;
      create index on part_likes (post_id);
      insert into part_likes select 1 + g % 10, g % 4 from generate_series(1, 40) g`)
    const counter = await createCounter({ source: { table: 'part_likes', key: 'post_id' }, target: { table: 'part_posts', key: 'id', column: 'n' } })
    await db.pool.query('insert into part_likes_1 values (3, 1); insert into part_likes values (4, 2); delete from part_likes_2 where post_id = 9; update part_likes set day = 1 where post_id = 5')
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 10, ...clean })
    await db.pool.query('truncate part_likes_1')
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 10, ...clean })
    await tally.drain()
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 10, ...clean })
    await db.pool.query('update part_posts set n = n - 1')
    const found = await ranges(counter, 3)
    expect(found.map((one) => one.checked_keys)).toEqual(['3', '3', '3', '1'])
    expect(found.flatMap(({ drifting }) => drifting.map(({ key }) => Number(key)))).toEqual(range(1, 10))
    expect(await tally.counter(counter).audit({ sample: 4 })).toMatchObject({ checkedKeys: 4, driftingKeys: 4 })
  })

  test('in a table that is both source and target', async () => {
    await db.pool.query('create table comments (id bigint primary key, parent_id bigint references comments, replies integer not null default 0); create index on comments (parent_id)')
    const counter = await createCounter({ source: { table: 'comments', key: 'parent_id' }, target: { table: 'comments', key: 'id', column: 'replies' } })
    await db.pool.query('insert into comments values (1, null), (2, 1), (3, 1), (4, 2), (5, 4)')
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 5, ...clean })
    await tally.drain()
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 5, ...clean })
    await db.pool.query('update comments set parent_id = 1 where id = 5; update comments set replies = 9 where id = 4')
    expect(driftsByKey(await tally.counter(counter).audit())).toEqual({ 4: -8 })
    await db.pool.query('truncate comments')
    expect(await tally.counter(counter).audit()).toMatchObject({ checkedKeys: 0, ...clean })
  })

  test('by a counter that follows the queue of another: each against the same source, from its own position', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 2)
    const follower = await createCounter({ queue: blog.counter })
    await like(db.pool, blog, 2, 3)
    await apply(db.pool, blog.counter)
    for (const counter of [blog.counter, follower]) expect(await tally.counter(counter).audit()).toMatchObject(clean)
    await db.pool.query(`update ${await counterTable(follower, 'carry')} set delta = delta + 1 where key = 1`)
    expect(await tally.counter(follower).audit()).toMatchObject({ drifts: [{ key: '1', source: 2, stored: 0, carried: 3, pending: 0, drift: -1 }] })
    expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
    await apply(db.pool, follower)
    expect(driftsByKey(await tally.counter(follower).audit())).toEqual({ 1: -1 })
  })
})

describe('what it gives', () => {
  /** All keys drift. */
  const drifting = async (keys: number, index: string | null = '(key)', onMissing?: 'insert') =>
    createCounter({ ...(await createTables({ counted: {}, posts: each(range(1, keys), 5), index })), ...(onMissing && { onMissing }) }, { backfill: false })

  test('of more than 1000 drifts the first 1000, and how many there are', async () => {
    for (const index of ['(key)', null]) {
      const counter = await drifting(2500, index)
      const audit = await tally.counter(counter).audit()
      expect({ ...audit, drifts: audit.drifts.map(({ key }) => Number(key)) }).toEqual({ counter, checkedKeys: 2500, driftingKeys: 2500, drifts: range(1, 1000) })
      const byKeys = await tally.counter(counter).audit({ keys: range(101, 2200) })
      expect({ ...byKeys, drifts: byKeys.drifts.map(({ key }) => Number(key)) }).toEqual({ counter, checkedKeys: 2100, driftingKeys: 2100, drifts: range(101, 1100) })
    }
  })

  test('the SQL function audit(): every drift, also where the source has no index', async () => {
    for (const index of ['(key)', null]) {
      const counter = await drifting(2500, index)
      const found = await db.pool.query<{ key: string }>('select * from pgtally.audit($1)', [counter])
      expect(found.rows.map(({ key }) => Number(key))).toEqual(range(1, 2500))
      expect(found.rows.at(-1)).toEqual({ key: '2500', part: null, source: '0', stored: '5', carried: '0', pending: '0' })
    }
  })

  test('the SQL function audit(): every drift, also where source and target have keys by turns', async () => {
    const tables = await createTables({ counted: each(range(1, 2999, 2), 1), posts: each(range(2, 3000, 2), 1) })
    const counter = await createCounter({ ...tables, onMissing: 'insert' }, { backfill: false })
    expect((await column<string>(db.pool, 'select key from pgtally.audit($1)', [counter])).map(Number)).toEqual(range(1, 3000))
  })

  test('for certain keys: those, each once, in whatever form', async () => {
    const counter = tally.counter(await drifting(5))
    expect(driftsByKey(await counter.audit({ keys: [1, '2', 3n, '03'] }))).toEqual({ 1: -5, 2: -5, 3: -5 })
    expect(await counter.audit({ keys: [] })).toMatchObject({ checkedKeys: 0, ...clean })
    expect(await counter.audit({ keys: [99] })).toMatchObject({ checkedKeys: 0, ...clean })
  })

  test('for a sample: so many keys of the target, whatever the statistics say', async () => {
    const name = await drifting(3000)
    const counter = tally.counter(name)
    const table = await value<string>(db.pool, 'select target_table::text from pgtally.counter where name = $1', [name])
    // Far more rows than there are: then it may find fewer, or none.
    await db.pool.query(`update pg_class set reltuples = 1e9 where oid = $1::regclass`, [table])
    expect((await counter.audit({ sample: 20 })).checkedKeys).toBeLessThanOrEqual(20)
    await db.pool.query(`analyze ${table}`)
    expect(await counter.audit({ sample: 1 })).toMatchObject({ checkedKeys: 1, driftingKeys: 1 })
    expect(await counter.audit({ sample: 20 })).toMatchObject({ checkedKeys: 20, driftingKeys: 20 })
    expect(await counter.audit({ sample: 10_000 })).toMatchObject({ checkedKeys: 3000 })
    await db.pool.query(`truncate ${table}`)
    expect(await counter.audit({ sample: 5 })).toMatchObject({ checkedKeys: 0, ...clean })
  })

  test('against a column that the application keeps itself, with or without a source', async () => {
    const tables = await createTables({ counted: { 1: 2, 2: 1 }, posts: { 1: 0, 2: 0, 3: 0 } })
    const withSource = await createCounter(tables)
    await tally.drain()
    await db.pool.query(`update ${tables.target.table} set other = case key when 1 then 2 when 2 then 5 end`)
    expect(await tally.counter(withSource).audit()).toMatchObject(clean)
    expect(await tally.counter(withSource).audit({ against: 'other' })).toMatchObject({ checkedKeys: 3, drifts: [{ key: '2', source: 5, stored: 1, carried: 0, pending: 0, drift: 4 }] })
    expect(driftsByKey(await tally.counter(withSource).audit({ against: 'other', keys: [1, 2] }))).toEqual({ 2: 4 })
    expect(await column(db.pool, `select key from pgtally.audit($1, 'other')`, [withSource])).toEqual(['2'])
    await tally.dropCounter(withSource)

    const events = await createCounter({ target: tables.target })
    await tally.counter(events).add(db.pool, 2, 4)
    expect(await tally.counter(events).audit({ against: 'other' })).toMatchObject({ checkedKeys: 3, ...clean })
    await tally.drain()
    expect(await tally.counter(events).audit({ against: 'other' })).toMatchObject({ checkedKeys: 3, ...clean })
  })

  test('progress after each range, up to the result', async () => {
    const name = await drifting(5000)
    await db.pool.query(`analyze ${await value<string>(db.pool, 'select target_table::text from pgtally.counter where name = $1', [name])}`)
    const seen: MeasureProgress[] = []
    const { checkedKeys, driftingKeys } = await tally.counter(name).audit({ onProgress: (progress) => seen.push(progress) })
    expect(seen.length).toBeGreaterThan(1)
    expect(seen[0]).toEqual({ counter: name, checkedKeys: 1000, driftingKeys: 1000, estimatedKeys: 5000 })
    expect(seen.at(-1)).toEqual({ counter: name, checkedKeys, driftingKeys, estimatedKeys: 5000 })
    expect(seen.map((one) => one.checkedKeys)).toEqual(seen.map((one) => one.checkedKeys).toSorted((a, b) => a - b))
  })

  test('with a signal: its reason, before the first range or between two', async () => {
    const counter = tally.counter(await drifting(5000))
    await expect(counter.audit({ signal: AbortSignal.abort(new Error('enough')) })).rejects.toThrow('enough')
    const abort = new AbortController()
    let calls = 0
    const audit = counter.audit({
      signal: abort.signal,
      onProgress: () => {
        calls++
        abort.abort(new Error('enough'))
      },
    })
    await expect(audit).rejects.toThrow('enough')
    expect(calls).toBe(1)
  })

  test('by the command: a table or JSON, and exit code 1 for a drift', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 2)
    const audit = (...args: string[]) => startCommand(db.connectionString, ['audit', blog.counter, ...args]).ended
    const exact = audit('--json')
    expect(await exact).toMatchObject({ code: 0, stderr: '' })
    expect(JSON.parse((await exact).stdout)).toEqual([{ counter: blog.counter, checkedKeys: 10, ...clean }])
    await db.pool.query(`update ${blog.posts} set like_count = 1 where id in (1, 2)`)
    const [all, one, other] = await Promise.all([audit(), audit('--key', '1', '--key', '3', '--json'), audit('--key', '3')])
    expect(all).toMatchObject({ code: 1, stdout: expect.stringMatching(/10 keys checked, 2 drifting/) })
    expect(one.code).toBe(1)
    expect(JSON.parse(one.stdout)).toMatchObject([{ checkedKeys: 2, drifts: [{ key: '1', source: 2, stored: 1, pending: 2, drift: -1 }] }])
    expect(other).toMatchObject({ code: 0, stdout: expect.stringMatching(/1 keys? checked, no drift/) })
  })
})

describe('is refused', () => {
  test('in a transaction of another isolation, which cannot see what it has locked', async () => {
    const blog = await createBlog(db, tally)
    for (const isolation of ['repeatable read', 'serializable']) {
      for (const call of ['audit_range($1)', `audit_keys($1, '{1}')`, 'audit($1)']) {
        const client = await db.connect()
        await client.query(`begin isolation level ${isolation}`)
        await expect(client.query(`select * from pgtally.${call}`, [blog.counter])).rejects.toMatchObject({ code: 'TL004' })
        await client.end()
      }
    }
    // The library takes the isolation that it needs, whatever the default.
    const name = await value<string>(db.pool, 'select current_database()')
    await db.pool.query(`alter database ${name} set default_transaction_isolation = 'serializable'`)
    try {
      const fresh = startCommand(db.connectionString, ['audit', blog.counter])
      expect(await fresh.ended).toMatchObject({ code: 0 })
    } finally {
      await db.pool.query(`alter database ${name} reset default_transaction_isolation`)
    }
  })

  test('for what is not there or not comparable, and the error says why', async () => {
    const events = await createCounter({ keyType: 'uuid' })
    const tables = await createTables({ counted: { 1: 1 }, posts: { 1: 1 } })
    const counter = await createCounter(tables)
    const refusals: [audit: () => Promise<unknown>, error: object][] = [
      [() => tally.counter('nothing').audit(), { code: 'NOT_FOUND', message: expect.stringContaining('nothing') }],
      [() => tally.counter('nothing').audit({ keys: [1] }), { code: 'NOT_FOUND' }],
      [() => tally.counter('nothing').audit({ sample: 1 }), { code: 'NOT_FOUND' }],
      [() => tally.counter(events).audit(), { code: 'NOT_APPLICABLE', message: expect.stringContaining('reset') }],
      [() => tally.counter(events).audit({ keys: [] }), { code: 'NOT_APPLICABLE' }],
      [() => tally.counter(counter).audit({ against: 'nowhere' }), { code: 'INVALID_DEFINITION', message: expect.stringContaining('"nowhere"') }],
      [() => tally.counter(counter).audit({ against: 'ctid' }), { code: 'INVALID_DEFINITION' }],
      [() => tally.counter(events).audit({ against: 'key' }), { code: 'INVALID_DEFINITION' }],
      [() => tally.counter(counter).audit({ keys: ['one'] }), { code: '22P02' }],
      [() => tally.counter(events).audit({ against: 'value', keys: [1] }), { code: '22P02' }],
      [() => tally.counter(counter).audit({ keys: [1.5] }), { code: 'INVALID_EVENT' }],
      [() => tally.counter(counter).audit({ sample: 0 }), { code: 'INVALID_DEFINITION' }],
      [() => tally.counter(counter).audit({ sample: 1, keys: [1] }), { code: 'INVALID_ARGUMENT' }],
      [() => db.pool.query('select pgtally.audit_range($1, null, 0)', [counter]), { code: 'TL003' }],
      [() => db.pool.query(`select pgtally.audit_range($1, 'one')`, [counter]), { code: '22P02' }],
    ]
    for (const [audit, error] of refusals) await expect(audit()).rejects.toMatchObject(error)
  })

  test('when source or target was dropped, and when the position is another cluster\'s', async () => {
    for (const dropped of ['source', 'target'] as const) {
      const tables = await createTables({ counted: { 1: 1 }, posts: { 1: 1 } })
      const counter = await createCounter(tables)
      await db.pool.query(`drop table ${tables[dropped].table}`)
      for (const options of [{}, { keys: [1] }]) {
        await expect(tally.counter(counter).audit(options)).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringContaining(`${dropped} table was dropped`) })
      }
      await tally.dropCounter(counter)
    }
    const blog = await createBlog(db, tally)
    await db.pool.query('update pgtally.consumer set system_identifier = 1 where name = $1', [blog.counter])
    await expect(tally.counter(blog.counter).audit()).rejects.toMatchObject({ code: 'OTHER_CLUSTER' })
    await tally.dropCounter(blog.counter)
  })
})

describe('while the application writes', () => {
  test('an audit that is held open blocks neither writers nor batches nor another audit, and keeps a slot without making anyone wait', async () => {
    const blog = await createBlog(db, tally, { rest: { rotationPeriodMs: 1000 } })
    await like(db.pool, blog, 1, 3)
    const auditor = await db.connect()
    await auditor.query('begin')
    await auditor.query('select pgtally.audit_range($1)', [blog.counter])
    await like(db.pool, blog, 2)
    await db.pool.query(`update ${blog.likes} set post_id = 3 where post_id = 2; delete from ${blog.likes} where post_id = 1; delete from ${blog.posts} where id = 10; insert into ${blog.posts} (id) values (11)`)
    await apply(db.pool, blog.counter)
    await db.pool.query('select pgtally.rotate($1)', [blog.counter])
    expect(await tally.counter(blog.counter).audit()).toMatchObject({ checkedKeys: 10, ...clean })
    await auditor.query('commit')
  })

  /** What an application does in one transaction. */
  const migrations: [what: string, first: (blog: Blog) => string, second: (blog: Blog) => string][] = [
    ['the posts and then the likes', ({ posts }) => `alter table ${posts} add note text`, ({ likes }) => `alter table ${likes} add note text`],
    ['the likes and then the posts', ({ likes }) => `alter table ${likes} add note text`, ({ posts }) => `alter table ${posts} add note text`],
    ['the likes and then the posts, by TRUNCATE', ({ likes }) => `truncate ${likes}`, ({ posts }) => `truncate ${posts} cascade`],
  ]
  for (const [what, first, second] of migrations) {
    test(`a transaction that locks ${what} does not come into a deadlock with it`, async () => {
      const blog = await createBlog(db, tally)
      await like(db.pool, blog, 1, 3)
      const [application, auditor] = [await db.connect(), await db.connect()]
      await application.query('begin')
      await application.query(first(blog))
      const backend = await pid(auditor)
      const audit = outcome(auditor.query('select pgtally.audit_range($1)', [blog.counter]))
      await blocked(db, backend)
      const going = outcome(application.query(second(blog)))
      expect(await going).toBe('done')
      await application.query('commit')
      expect(await audit).toBe('done')
      expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
    })
  }

  test(`rotations, batches and TRUNCATEs make it see no drift where there is none (seed ${seed})`, async () => {
    const blog = await createBlog(db, tally, { rest: { rotationPeriodMs: 1000 } })
    await db.pool.query(`create index on ${blog.likes} (post_id)`)
    const events = await eventTable(blog.counter)
    const files = () => value<string>(db.pool, `select string_agg(pg_relation_filenode(relid)::text, ',' order by relid) from pg_partition_tree($1)`, [events])
    const rotated = new Set<string>()
    let audits = 0
    const found: unknown[] = []
    const look = async (session: Session, call: string) => {
      const { rows } = await session.query<Range>(`select * from pgtally.${call}`, [blog.counter])
      audits++
      found.push(...rows.flatMap(({ drifting }) => drifting))
    }
    {
      await using running = new AsyncDisposableStack()
      running.use(tally.worker())
      running.use(tally.worker({ pollIntervalMs: 5 }))
      running.use(storm(db, blog))
      const auditor = await db.connect()
      running.use(beside(async () => {
        for (const call of ['audit_range($1)', `audit_range($1, '3', 4)`, `audit_keys($1, '{1,2,3}')`]) await look(auditor, call)
        // Time for rotations, which do not wait for an audit.
        await sleep(20)
      }))
      // Right behind an insert in the same transaction, too.
      const truncations = running.use(beside(() => db.pool.query(`insert into ${blog.likes} (post_id) select 1 + g % 10 from generate_series(1, 30) g; truncate ${blog.likes}`)))
      await waitFor(async () => {
        rotated.add(await files())
        return found.length > 0 || (rotated.size > 2 && truncations.rounds > 20 && audits > 50)
      }, { what: 'two rotations, twenty TRUNCATEs and fifty audits' })
    }
    expect(found).toEqual([])
    await expectExact(db, tally, blog)
    expect(await violations(db, blog.counter)).toEqual([])
  })
})
