import { beforeAll, describe, expect, test } from 'vitest'

import type { CounterDefinition, PgtallyErrorCode, Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, installed, value } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  await db.pool.query(`
    create table posts (id bigint primary key, like_count bigint not null default 0, other_count int not null default 0, title text, price numeric, ratio float8,
      doubled bigint generated always as (like_count * 2) stored, serial bigint generated always as identity);
    create table tags (name text primary key, n bigint not null default 0);
    create table loose (id bigint, n bigint not null default 0);
    create unique index on loose (id) where n > 0;
    create table deferred (id bigint unique deferrable, n bigint not null default 0);
    create table pair (id bigint, other int, n bigint not null default 0, unique (id, other));
    create table likes (id bigint generated always as identity, post_id bigint, user_id uuid, kind text, at timestamptz, weight numeric, small int);
    create view likes_view as select * from likes;
    create materialized view likes_matview as select * from likes;
    create unlogged table likes_unlogged (post_id bigint);
    create table parent (post_id bigint);
    create table child () inherits (parent);
    create foreign data wrapper nothing;
    create server nowhere foreign data wrapper nothing;
    create foreign table likes_foreign (post_id bigint) server nowhere;
    create sequence numbers`)
  return db.drop
})

const source = { table: 'likes', key: 'post_id' }
const target = { table: 'posts', key: 'id', column: 'like_count' }
const where = (condition: string): CounterDefinition => ({ source: { ...source, where: condition }, target })
const sum = (expression: string): CounterDefinition => ({ source: { ...source, sum: expression }, target })

/** All that pgtally has made, and the triggers. */
const everything = () =>
  value<string>(
    db.pool,
    `select concat((select string_agg(relname, ',' order by relname) from pg_class where relnamespace = 'pgtally'::regnamespace),
      (select string_agg(proname, ',' order by proname, oid) from pg_proc where pronamespace = 'pgtally'::regnamespace),
      (select count(*) from pg_trigger), (select count(*) from pgtally.counter), (select count(*) from pgtally.queue), (select count(*) from pgtally.batch))`,
  )

const refused: [what: string, definition: CounterDefinition, code: PgtallyErrorCode, names: RegExp][] = [
  ['an unknown table', { source: { table: 'nowhere', key: 'a' } }, 'INVALID_DEFINITION', /"nowhere".*schema/],
  ['an unknown schema', { source: { table: 'nowhere.likes', key: 'a' } }, 'INVALID_DEFINITION', /"nowhere"/],
  ['no name of a table', { source: { table: 'a b c', key: 'a' } }, 'INVALID_DEFINITION', /name/],
  ['an unknown key column', { source: { table: 'likes', key: 'post' } }, 'INVALID_DEFINITION', /likes.*"post"/],
  ['a system column', { source: { table: 'likes', key: 'xmin' } }, 'INVALID_DEFINITION', /"xmin"/],
  ['a key that is a time', { source: { table: 'likes', key: 'at' } }, 'INVALID_DEFINITION', /likes\.at.*timestamp.*bigint/],
  ['a key that is numeric', { source: { table: 'likes', key: 'weight' } }, 'INVALID_DEFINITION', /likes\.weight.*numeric/],
  ['keys of two types', { source: { table: 'likes', key: 'user_id' }, target }, 'INVALID_DEFINITION', /uuid and bigint/],
  ['keys of text and bigint', { source: { table: 'likes', key: 'kind' }, target }, 'INVALID_DEFINITION', /text and bigint/],
  ['another key type than the column has', { source, keyType: 'uuid' }, 'INVALID_DEFINITION', /bigint and uuid/],
  ['an unknown target table', { source, target: { ...target, table: 'nowhere' } }, 'INVALID_DEFINITION', /"nowhere"/],
  ['an unknown target column', { source, target: { ...target, column: 'likes' } }, 'INVALID_DEFINITION', /posts.*"likes".*ADD COLUMN likes/],
  ['a target column of text', { source, target: { ...target, column: 'title' } }, 'INVALID_DEFINITION', /posts\.title.*text/],
  ['a target column of float', { source, target: { ...target, column: 'ratio' } }, 'INVALID_DEFINITION', /posts\.ratio.*double/],
  ['a generated target column', { source, target: { ...target, column: 'doubled' } }, 'INVALID_DEFINITION', /posts\.doubled.*generated/],
  ['an identity target column', { source, target: { ...target, column: 'serial' } }, 'INVALID_DEFINITION', /posts\.serial/],
  ['the key as the target column', { source, target: { ...target, column: 'id' } }, 'INVALID_DEFINITION', /posts\.id/],
  ['an unknown target key', { source, target: { ...target, key: 'post_id' } }, 'INVALID_DEFINITION', /posts.*"post_id"/],
  ['a target key with a partial unique index', { source, target: { table: 'loose', key: 'id', column: 'n' } }, 'INVALID_DEFINITION', /loose\.id.*unique.*CREATE UNIQUE INDEX/],
  ['a target key with a deferrable constraint', { source, target: { table: 'deferred', key: 'id', column: 'n' } }, 'INVALID_DEFINITION', /deferred\.id/],
  ['a target key that is one of two', { source, target: { table: 'pair', key: 'id', column: 'n' } }, 'INVALID_DEFINITION', /pair\.id/],
  ['a view as the target', { source, target: { table: 'likes_view', key: 'post_id', column: 'id' } }, 'INVALID_DEFINITION', /likes_view/],
  ['a view', { source: { table: 'likes_view', key: 'post_id' } }, 'INVALID_DEFINITION', /likes_view.*table/],
  ['a materialized view', { source: { table: 'likes_matview', key: 'post_id' } }, 'INVALID_DEFINITION', /likes_matview/],
  ['a foreign table', { source: { table: 'likes_foreign', key: 'post_id' } }, 'INVALID_DEFINITION', /likes_foreign/],
  ['an unlogged table', { source: { table: 'likes_unlogged', key: 'post_id' } }, 'INVALID_DEFINITION', /likes_unlogged.*unlogged/],
  ['a sequence', { source: { table: 'numbers', key: 'last_value' } }, 'INVALID_DEFINITION', /numbers/],
  ['a parent of inheritance', { source: { table: 'parent', key: 'post_id' } }, 'INVALID_DEFINITION', /parent.*inheritance/],
  ['where: a syntax error', where('kind ='), 'INVALID_DEFINITION', /"kind ="/],
  ['where: an unknown column', where('sort = 1'), 'INVALID_DEFINITION', /sort/],
  ['where: no condition', where('weight'), 'INVALID_DEFINITION', /boolean/],
  ['where: empty', where(''), 'INVALID_DEFINITION', /where/],
  ['where: a subquery', where('exists (select from public.posts)'), 'INVALID_DEFINITION', /subquer/],
  ['where: a volatile function', where('random() < 1'), 'INVALID_DEFINITION', /IMMUTABLE/i],
  ['where: the time', where('at < now()'), 'INVALID_DEFINITION', /IMMUTABLE/i],
  ['where: an aggregate', where('count(*) > 1'), 'INVALID_DEFINITION', /aggregate/],
  ['where: a window function', where('row_number() over () > 1'), 'INVALID_DEFINITION', /window/],
  ['where: a second statement', where('true); drop table likes; --'), 'INVALID_DEFINITION', /drop table likes/],
  ['where: another bracket', where('true) or (select true from posts limit 1'), 'INVALID_DEFINITION', /cannot be used/],
  ['where: an open comment', where('true /*'), 'INVALID_DEFINITION', /comment/],
  ['sum: fractions', sum('weight'), 'INVALID_DEFINITION', /numeric/],
  ['sum: text', sum('kind'), 'INVALID_DEFINITION', /text/],
  ['sum: two columns', sum('small, small'), 'INVALID_DEFINITION', /small/],
  ['sum: an aggregate', sum('sum(small)'), 'INVALID_DEFINITION', /aggregate/],
  ['an unknown queue', { queue: 'nowhere' }, 'NOT_FOUND', /"nowhere"/],
  ['a source and a queue', { source, queue: 'nowhere' }, 'INVALID_DEFINITION', /source.*queue/],
  ['a wrong onMissing', { source, onMissing: 'ignore' as 'drop' }, 'INVALID_DEFINITION', /onMissing/],
  ['a short rotation period', { source, rotationPeriodMs: 10 }, 'INVALID_DEFINITION', /rotationPeriodMs/],
  ['events to be kept longer than a slot is written', { source, rotationPeriodMs: 2000, retainMs: 3000 }, 'INVALID_DEFINITION', /"refused: .*00:00:03.*00:00:02/],
  ['events to be kept for less than no time', { source, retainMs: -1 }, 'INVALID_DEFINITION', /retainMs/],
  ['a misspelt option', { source, onMising: 'drop' } as CounterDefinition, 'INVALID_DEFINITION', /onMising/],
]

describe('a counter is refused, and nothing changed', () => {
  for (const [what, definition, code, names] of refused) {
    test(`${what}`, async () => {
      const before = await everything()
      await expect(tally.createCounter(`refused: ${what}`, definition)).rejects.toMatchObject({ name: 'PgtallyError', code, message: expect.stringMatching(names) })
      expect(await everything()).toBe(before)
    })
  }

  test('a temporary source', async () => {
    const client = await db.connect()
    await client.query('create temporary table likes_temp (post_id bigint)')
    await expect(client.query(`select pgtally.create_counter('refused', 'likes_temp', 'post_id')`)).rejects.toMatchObject({ code: 'TL003', message: expect.stringContaining('temporary') })
    await client.end()
  })

  test('without a name', async () => {
    await expect(tally.createCounter('', { source })).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
    await expect(db.pool.query('select pgtally.create_counter(null)')).rejects.toMatchObject({ code: 'TL003' })
  })
})

test('the same definition again is no conflict, however it is written; another one says what differs', async () => {
  const definition: CounterDefinition = { source: { ...source, where: `kind = 'like' and small > 1` }, target: { ...target, column: 'other_count' } }
  expect(await tally.createCounter('again', definition)).toBe(true)
  expect(await tally.createCounter('again', definition)).toBe(false)
  const rewritten = { ...definition, source: { table: 'public.likes', key: 'post_id', where: `( (kind)::text='like'::text  AND /* more */ "small">1 )` } }
  expect(await tally.createCounter('again', { ...rewritten, onMissing: 'drop', keyType: 'bigint' })).toBe(false)
  await expect(tally.createCounter('again', { ...definition, source: { ...source, where: `kind = 'love'` } })).rejects.toMatchObject({
    code: 'DEFINITION_CONFLICT',
    message: expect.stringMatching(/"again".*where.*'love'/),
  })
  await expect(tally.createCounter('again', { ...definition, onMissing: 'error' })).rejects.toMatchObject({ code: 'DEFINITION_CONFLICT', message: expect.stringMatching(/on_missing is drop, not error/) })
  await expect(tally.createCounter('again', { source })).rejects.toMatchObject({ code: 'DEFINITION_CONFLICT', message: expect.stringContaining('other_count') })
  await tally.dropCounter('again')
})

test('another rotation period is another definition', async () => {
  await tally.createCounter('rotating', { source, rotationPeriodMs: 2000 })
  await expect(tally.createCounter('rotating', { source, rotationPeriodMs: 1000 })).rejects.toMatchObject({ code: 'DEFINITION_CONFLICT', message: expect.stringContaining('rotation') })
})

test('a source of another counter\'s queue takes no events by hand, nor what is no key', async () => {
  await tally.createCounter('sourced', { source })
  await tally.createCounter('by hand', { keyType: 'bigint' })
  const [sourced, byHand] = [tally.counter('sourced'), tally.counter('by hand')]
  await expect(sourced.add(db.pool, 1)).rejects.toMatchObject({ code: 'INVALID_EVENT', message: expect.stringContaining('likes') })
  await expect(byHand.add(db.pool, null as unknown as number)).rejects.toMatchObject({ code: 'INVALID_EVENT' })
  await expect(byHand.add(db.pool, 1, 1.5)).rejects.toMatchObject({ code: 'INVALID_EVENT' })
  await expect(byHand.add(db.pool, 1, 2 ** 60)).rejects.toMatchObject({ code: 'INVALID_EVENT' })
  await expect(byHand.add(db.pool, 1.5)).rejects.toMatchObject({ code: 'INVALID_EVENT' })
  await expect(byHand.add(db.pool, 'x')).rejects.toMatchObject({ code: '22P02' })
  await expect(byHand.get('x')).rejects.toThrow('"x"')
  await expect(tally.counter('nobody').get(1)).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('"nobody"') })
  await expect(tally.counter('nobody').add(db.pool, 1)).rejects.toMatchObject({ code: 'NOT_FOUND' })
  await expect(tally.dropCounter('nobody')).rejects.toMatchObject({ code: 'NOT_FOUND' })
  await byHand.add(db.pool, 1, 2n ** 62n)
  await applyAll(db.pool, 'by hand')
  expect(await byHand.get(1, { bigint: true })).toBe(2n ** 62n)
})

test('the options of the library', async () => {
  expect(() => createTally({} as { pool: typeof db.pool })).toThrow(/needs a pool/)
  const client = await db.connect()
  expect(() => createTally({ pool: client as unknown as typeof db.pool })).toThrow(/needs a pool/)
  for (const schema of ['', 'Tally', 'a b', 'a"b', 'a;b', 'pgtally.x', 'x'.repeat(41)]) {
    expect(() => createTally({ pool: db.pool, schema })).toThrow(`"${schema}" cannot be the name`)
  }
})
