import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { column, value, violations } from './support/fixtures.ts'
import { createRole, dropRoles, type TestRole } from './support/roles.ts'

// What somebody may try who has a role of the application, or may choose a name, a key or an expression. Each test fails when its guard is taken away.

let db: TestDatabase
let owner: TestRole
let tally: Tally
const roles: TestRole[] = []

beforeAll(async () => {
  db = await createTestDatabase()
  owner = await createRole(db, roles)
  tally = owner.tally
  const database = new URL(db.connectionString).pathname.slice(1)
  await db.pool.query(`grant create on database ${database} to ${owner.role}; grant temporary on database ${database} to public; grant all on schema public to ${owner.role}; grant usage on schema public to public`)
  await tally.install()
  await owner.client.query('create table precious (a int); insert into precious values (1)')
})

afterAll(async () => {
  await dropRoles(db, roles)
  await db.drop()
})

const unharmed = async () => expect(await column(db.pool, 'select a from public.precious')).toEqual([1])

const spellings = [`'); drop table public.precious; --`, `"; drop table public.precious; --`, `$pgtally$ $body$ $1 %I %s %% \\' {0}`, `new\nline -- \t/* ', " */ Ünï😀`]

test.each(spellings)('counters, queues, consumers, tables and columns named %j', async (odd) => {
  const identifier = (name: string) => `"${name.replaceAll('"', '""')}"`
  const literal = `E'${odd.replaceAll('\\', '\\\\').replaceAll("'", "''")}'`
  const [key, sum, count] = [odd, `${odd} 2`, `${odd} n`].map(identifier)
  const likes = `${key}.${key}`
  const posts = `${key}.${identifier(`${odd} t`)}`
  const name = `${odd} counter`
  await owner.client.query(`
    create schema ${key};
    create table ${likes} (${key} text, ${sum} integer default 1, k text);
    create table ${posts} (${key} text primary key, ${count} bigint);
    insert into ${likes} (${key}, k) values ('a', 'like'), (${literal}, 'like')`)
  await tally.createCounter(name, {
    source: { table: likes, key: odd, where: `k = 'like' and ${key} is not null and k <> ${literal}`, sum: `${sum} + 0`, data: [odd, `${odd} 2`] },
    target: { table: posts, key: odd, column: `${odd} n` },
    onMissing: 'insert',
    milestones: [1],
  })
  await tally.createCounter(`${odd} follower`, { queue: name })
  await owner.client.query(`
    insert into ${likes} (${key}, k) values (${literal}, 'like'), ('b', 'like'), ('b', ${literal});
    update ${likes} set ${key} = 'c' where ${key} = 'a';
    delete from ${likes} where ${key} = 'b' and k = 'like'`)
  expect(await violations(db, name)).toEqual([])
  const counter = tally.counter<string>(name)
  expect(await counter.get(odd, { fresh: true })).toMatchObject({ count: 2 })
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await counter.getMany(['c', odd])).toEqual(new Map([['c', 1], [odd, 2]]))
  expect(await counter.audit({ keys: [odd] })).toMatchObject({ checkedKeys: 1, driftingKeys: 0 })
  expect(await counter.audit()).toMatchObject({ driftingKeys: 0 })
  expect(await counter.audit({ against: `${odd} n` })).toMatchObject({ driftingKeys: 0 })
  await owner.client.query(`update ${posts} set ${count} = 9`)
  expect(await counter.reconcile()).toMatchObject({ driftingKeys: 4 })
  await owner.client.query(`truncate ${likes}`)
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await counter.milestones(odd)).toMatchObject([{ threshold: 1 }])
  await counter.waitFor('3', { key: odd })

  const queue = tally.queue(`${odd} queue`)
  await tally.createQueue(queue.name, { keyType: 'text' })
  await queue.register(odd)
  await queue.insert(owner.pool, { key: odd, data: { [odd]: odd } })
  const given: unknown[] = []
  await using consumer = tally.consumer({ queue: queue.name, name: odd, pollIntervalMs: 5, maxAttempts: 1, each: async (event) => {
    given.push([event.key, event.data])
    throw new Error(odd)
  } })
  await expect.poll(() => queue.deadLetters(odd), { timeout: 20_000 }).toMatchObject([{ key: odd, data: { [odd]: odd }, reason: expect.stringContaining(odd) }])
  await consumer.stop()
  expect(given).toContainEqual([odd, { [odd]: odd }])
  expect([await queue.pause(odd), await queue.resume(odd), await queue.seek(odd, new Date(0)), await queue.skip(odd), await queue.purge(odd)]).toEqual([true, true, 1, 1, 1])
  await owner.client.query('select pgtally.rotate($1), pgtally.sync_triggers($2), pgtally.record_error($2, $3)', [queue.name, name, odd])
  expect((await tally.status()).counters.filter(({ name: of }) => of.startsWith(odd))).toMatchObject([{ lastError: odd }, {}])
  await queue.unregister(odd)
  await tally.dropQueue(queue.name)
  await tally.dropCounter(`${odd} follower`)
  await tally.dropCounter(name)
  await unharmed()
})

describe('expressions', () => {
  beforeAll(async () => {
    await owner.client.query(`
      create table likes (post_id bigint, kind text default 'like', weight int default 1);
      create function changing() returns int language sql volatile as $$ select 1 $$`)
  })

  test.each([
    'exists (select from pg_authid)', '(select true)', 'post_id in (select oid from pg_class)', 'true) from pg_class union select (true', 'true); drop table public.precious; select (true', 'true)) where (true',
    '1) where (true', 'true /*', 'true) -- ', 'true)) --', '/* */', '', 'kind = $1', 'kind = \'', 'random() > 0', 'now() > \'2020-01-01\'', 'changing() = 1', 'count(*) > 0', 'row_number() over () > 0', 'generate_series(1, 2) > 0',
    'tableoid > 0', 'ctid is not null', 'current_user = \'x\'', 'true, true', 'new_rows.post_id > 0', 'likes.post_id > 0 and (select 1) = 1', 'true) include (post_id', 'true limit 1', 'ev_key > 0',
  ])('the condition %j is no condition on one row', async (where) => {
    await expect(tally.createCounter('tried', { source: { table: 'public.likes', key: 'post_id', where } })).rejects.toMatchObject({ code: expect.stringMatching(/INVALID_DEFINITION|PERMISSION_DENIED/) })
    await unharmed()
  })

  test('a comment is one, and what is stored is what the server has understood', async () => {
    await tally.createCounter('tried', { source: { table: 'public.likes', key: 'post_id', where: `kind = 'a''b' -- or true`, sum: 'weight /* ) */ + 1' } })
    expect((await db.pool.query('select where_condition, sum_expression from pgtally.source where source_key = $1', ['post_id'])).rows).toEqual([{ where_condition: `(kind = 'a''b'::text)`, sum_expression: '((weight + 1))' }])
    await tally.dropCounter('tried')
  })

  test.each(['1), (2', '(select 1)', '1) from pg_class union select (1', 'weight; drop table public.precious', 'weight) desc nulls first, (weight', 'weight int4_ops', 'weight, weight', 'random()::int', 'weight filter (where true)', '1.5', '\'1\'', 'kind'])(
    'the sum %j is none', async (sum) => {
      await expect(tally.createCounter('tried', { source: { table: 'public.likes', key: 'post_id', sum } })).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
      await unharmed()
    })

  test('no function in it that the creator may not call, or that somebody else could change later', async () => {
    const other = await createRole(db, roles)
    await db.pool.query(`create schema theirs authorization ${other.role}`)
    await other.client.query(`
      grant usage on schema theirs to public;
      create function theirs.liked(text) returns boolean language sql immutable as $$ select $1 = 'like' $$;
      create function theirs.secret(text) returns boolean language sql immutable as $$ select $1 = 'like' $$;
      create operator theirs.=== (leftarg = text, rightarg = text, function = texteq);
      create function theirs.same(text, text) returns boolean language sql immutable as $$ select $1 = $2 $$;
      create operator theirs.==== (leftarg = text, rightarg = text, function = theirs.same);
      revoke execute on function theirs.secret from public`)
    const create = (where: string) => tally.createCounter('theirs', { source: { table: 'public.likes', key: 'post_id', where } })
    await expect(create('theirs.secret(kind)')).rejects.toMatchObject({ code: 'PERMISSION_DENIED' })
    for (const where of ['theirs.liked(kind)', `kind operator(theirs.====) 'like'`, `not (kind = 'x' or theirs.liked('a'::text || kind))`]) {
      await expect(create(where)).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringContaining('belongs to another role') })
    }
    await owner.client.query(`create function liked(text) returns boolean language sql immutable as $$ select $1 = 'like' $$`)
    expect(await create('public.liked(kind)')).toBe(true)
    await owner.client.query('insert into likes values (1)')
    expect(await violations(db, 'theirs')).toEqual([])
    await tally.dropCounter('theirs')
  })
})

describe('functions that run with their owner\'s rights', () => {
  test('find nothing that their caller has put on the search_path or into pg_temp', async () => {
    const caller = await createRole(db, roles)
    await owner.client.query('create table if not exists votes (post_id bigint)')
    await tally.createCounter('votes', { source: { table: 'public.votes', key: 'post_id' } })
    await tally.createCounter('views', { keyType: 'text' })
    const votes = await value(db.pool, `select counter_id from pgtally.counter where name = 'votes'`)
    await tally.grant({ writers: [caller.role], readers: [caller.role], workers: [caller.role] })
    await db.pool.query(`create schema evil authorization ${caller.role}; grant usage on schema evil to public`)
    for (const schema of ['evil', 'pg_temp']) {
      await caller.client.query(`
        create table ${schema}.loot (who name); grant insert on ${schema}.loot to public;
        create function ${schema}.spoil() returns void language sql as $$ insert into ${schema}.loot values (current_user) $$;
        create function ${schema}.eq(text, text) returns boolean language plpgsql as $$ begin perform ${schema}.spoil(); return true; end $$;
        create operator ${schema}.= (leftarg = text, rightarg = text, function = ${schema}.eq);
        create function ${schema}.eq4(integer, integer) returns boolean language plpgsql as $$ begin perform ${schema}.spoil(); return true; end $$;
        create operator ${schema}.= (leftarg = integer, rightarg = integer, function = ${schema}.eq4);
        create function ${schema}.format(text, text) returns text language plpgsql as $$ begin perform ${schema}.spoil(); return 'select 1'; end $$;
        create function ${schema}.octet_length(text) returns integer language plpgsql as $$ begin perform ${schema}.spoil(); return 1; end $$;
        create function ${schema}.clock_timestamp() returns timestamptz language plpgsql as $$ begin perform ${schema}.spoil(); return 'epoch'; end $$;
        create domain ${schema}.text as pg_catalog.text check (${schema}.eq(value::pg_catalog.text, ''));
        create domain ${schema}.xid8 as pg_catalog.int8;
        create table ${schema}.queue (like pgtally.queue); create table ${schema}.counter (like pgtally.counter); create table ${schema}.pg_class (oid oid, relname name); create table ${schema}.event_1 (ev_key text)`)
      await caller.client.query(`set search_path = ${schema}, pg_catalog, public`)
      for (const call of [
        `pgtally.add_event('views'::pg_catalog.text, 'a'::pg_catalog.text)`, `pgtally.add_events('views'::pg_catalog.text, array['a']::pg_catalog.text[], array[1]::pg_catalog.int8[])`, `pgtally.insert_event('views'::pg_catalog.text, 'a'::pg_catalog.text)`,
        `pgtally.is_stored('views'::pg_catalog.text, '3'::pg_catalog.xid8, 'a'::pg_catalog.text)`, `pgtally.rotate('views'::pg_catalog.text)`, `pgtally.sync_triggers('votes'::pg_catalog.text)`, `pgtally.lock_measured(${votes})`,
      ]) await caller.client.query(`select ${call}`)
      await caller.client.query('reset search_path')
      expect(await column(caller.client, `select who::pg_catalog.text from ${schema}.loot`)).toEqual([])
    }
    expect(await value(db.pool, 'select count(*)::int from pgtally.event_' + (await value<number>(db.pool, `select pgtally.queue_id('views')`)))).toBe(6)
  })

  test('take a key, a name or a batch for nothing but that', async () => {
    const caller = await createRole(db, roles)
    await tally.createCounter('numbers', {})
    await tally.grant({ writers: [caller.role], workers: [caller.role] })
    for (const key of [`1); drop table public.precious; --`, `1::text::bigint`, `(select 1)`, `1 or true`]) {
      await expect(caller.client.query('select pgtally.add_event($1, $2)', ['numbers', key])).rejects.toMatchObject({ code: '22P02' })
      await expect(caller.client.query('select pgtally.is_stored($1, $2, $3)', ['numbers', '3', key])).rejects.toMatchObject({ code: '22P02' })
      await expect(caller.client.query('select pgtally.rotate($1)', [key])).rejects.toMatchObject({ code: 'TL001' })
      await expect(caller.client.query('select pgtally.sync_triggers($1)', [key])).rejects.toMatchObject({ code: 'TL001' })
      const batch = JSON.stringify({ cluster: 1, database: key, queue: key, consumer: key, number: 1, token: '00000000-0000-0000-0000-000000000001', follows: '00000000-0000-0000-0000-000000000002', is_first: true })
      await expect(caller.client.query('select pgtally.receive_batch($1, $2, $3, $4)', ['numbers', batch, [key], [1]])).rejects.toMatchObject({ code: '22P02' })
      await expect(caller.client.query('select pgtally.receive_batch($1, $2, $3, $4)', ['numbers', JSON.stringify({ cluster: key }), ['1'], [1]])).rejects.toMatchObject({ code: '22P02' })
    }
    await unharmed()
  })

  test('a worker that sets its own search_path runs a target\'s triggers as itself', async () => {
    const worker = await createRole(db, roles)
    await owner.client.query(`
      create table posts (id bigint primary key, n bigint default 0); insert into posts values (1); create table runs (who name); grant insert on runs to public;
      create function noted() returns trigger language plpgsql as $$ begin insert into public.runs values (current_user); return new; end $$;
      create trigger noted before update on posts for each row execute function noted()`)
    await tally.createCounter('with_trigger', { target: { table: 'public.posts', key: 'id', column: 'n' } })
    const { missing } = await tally.grant({ workers: [worker.role] })
    for (const statement of missing) await owner.client.query(statement)
    await tally.counter('with_trigger').add(owner.pool, 1)
    await worker.client.query(`alter role ${worker.role} set search_path = pg_temp, public`)
    expect(await worker.tally.drain()).toMatchObject({ failed: [] })
    expect(await column(db.pool, 'select distinct who::text from runs')).toEqual([worker.role])
  })
})

test('SET ROLE and membership give what the role has and no more; a session that gives up its rights has none', async () => {
  const member = await createRole(db, roles)
  const writer = await createRole(db, roles)
  await tally.createCounter('by_members', { keyType: 'text' })
  await tally.grant({ writers: [writer.role] })
  const add = `select pgtally.add_event('by_members', 'a')`
  await expect(member.client.query(add)).rejects.toMatchObject({ code: '42501' })
  await db.pool.query(`alter role ${member.role} noinherit; grant ${writer.role} to ${member.role}`)
  await member.client.query(`set role ${writer.role}`)
  await member.client.query(add)
  await expect(member.client.query('select from pgtally.counter')).rejects.toMatchObject({ code: '42501' })
  await expect(member.client.query(`set role ${owner.role}`)).rejects.toMatchObject({ code: '42501' })
  await member.client.query('reset role')
  const session = await db.connect()
  await session.query(`set role ${member.role}`)
  await expect(session.query(`select pgtally.apply_batch('by_members')`)).rejects.toMatchObject({ code: '42501' })
})
