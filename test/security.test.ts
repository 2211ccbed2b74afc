import { afterAll, beforeAll, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, column, createBlog, installed, like, outcome, stored, value, violations } from './support/fixtures.ts'
import { createRole as newRole, dropRoles, type TestRole } from './support/roles.ts'

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

const createRole = () => newRole(db, roles)
const database = () => new URL(db.connectionString).pathname.slice(1)

test('a writer without any right on pgtally can like', async () => {
  const blog = await createBlog(db, tally)
  const { role, client } = await createRole()
  await db.pool.query(`grant select, insert, update, delete, truncate on ${blog.likes} to ${role}; grant select, insert on ${blog.posts} to ${role}`)
  await like(client, blog, 1, 3)
  await client.query(`update ${blog.likes} set post_id = 2 where id = (select min(id) from ${blog.likes})`)
  await client.query(`delete from ${blog.likes} where id = (select max(id) from ${blog.likes})`)
  expect(await violations(db, blog.counter)).toEqual([])
  await client.query(`truncate ${blog.likes}`)
  await like(client, blog, 4)
  expect(await violations(db, blog.counter)).toEqual([])
  for (const forbidden of ['select * from pgtally.counter', `select pgtally.apply_batch('${blog.counter}')`, `select pgtally.insert_event('q', '1')`, `select pgtally.source_1_insert()`]) {
    await expect(client.query(forbidden)).rejects.toMatchObject({ code: '42501' })
  }
  await applyAll(db.pool, blog.counter)
  expect(await stored(db.pool, blog)).toEqual({ 4: 1 })
})

test('EXECUTE is all that a writer of events needs, also after an upgrade', async () => {
  await tally.createCounter('views', { keyType: 'text' })
  const { role, client, pool } = await createRole()
  await db.pool.query(`grant usage on schema pgtally to ${role}; grant execute on function pgtally.add_event, pgtally.insert_event(text, text, bigint, jsonb) to ${role}`)
  const own = createTally({ pool })
  await own.counter('views').add(client, '/home')
  await client.query(`select pgtally.insert_event('views', '/home'::text)`)
  await db.pool.query(`update pgtally.installation set functions_hash = 'of an older release'`)
  await tally.install()
  await own.counter('views').add(client, '/home')
  await applyAll(db.pool, 'views')
  expect(await tally.counter('views').get('/home')).toBe(3)
})

/** Functions and operators with the names of those that a trigger might use; each raises an error or gives a wrong result, and says who runs it. */
const evil = (schema: string) => `
  create table ${schema}.loot (who name, what text);
  grant insert on ${schema}.loot to public;
  create function ${schema}.spoil(text) returns void language sql as $$ insert into ${schema}.loot values (current_user, $1) $$;
  create function ${schema}.eq8(bigint, bigint) returns boolean language sql as $$ select ${schema}.spoil('=')::text is null $$;
  create operator ${schema}.= (leftarg = bigint, rightarg = bigint, function = ${schema}.eq8);
  create function ${schema}.eq84(bigint, integer) returns boolean language sql as $$ select ${schema}.spoil('=')::text is null $$;
  create operator ${schema}.= (leftarg = bigint, rightarg = integer, function = ${schema}.eq84);
  create operator ${schema}.<> (leftarg = bigint, rightarg = integer, function = ${schema}.eq84);
  create operator ${schema}.<> (leftarg = bigint, rightarg = bigint, function = ${schema}.eq8);
  create operator ${schema}.> (leftarg = integer, rightarg = integer, function = int4lt);
  create operator ${schema}.+ (leftarg = integer, rightarg = integer, function = int4mi);
  create function ${schema}.eqt(text, text) returns boolean language sql as $$ select ${schema}.spoil('text =')::text is null $$;
  create operator ${schema}.= (leftarg = text, rightarg = text, function = ${schema}.eqt);
  create function ${schema}.neg(bigint) returns bigint language sql as $$ select ${schema}.spoil('-')::text::bigint $$;
  create operator ${schema}.- (rightarg = bigint, function = ${schema}.neg);
  create function ${schema}.int8um(bigint) returns bigint language sql as $$ select 42::bigint $$;
  create function ${schema}.mod(bigint, bigint) returns bigint language sql as $$ select 1::bigint $$;
  create function ${schema}.floor(double precision) returns double precision language sql as $$ select 0::float8 $$;
  create function ${schema}.clock_timestamp() returns timestamptz language sql as $$ select 'epoch'::timestamptz $$;
  create function ${schema}.date_part(text, timestamptz) returns double precision language sql as $$ select 0::float8 $$;
  create function ${schema}.float8div(double precision, double precision) returns double precision language sql as $$ select 0::float8 $$;
  create function ${schema}.int8(double precision) returns bigint language sql as $$ select 0::bigint $$;
  create function ${schema}.pg_current_xact_id() returns xid8 language sql as $$ select '3'::xid8 $$;
  create aggregate ${schema}.count(*) (sfunc = int8inc, stype = bigint, initcond = '100');
  create aggregate ${schema}.sum(bigint) (sfunc = int8mi, stype = bigint, initcond = '7');
  create domain ${schema}.int4 as text;
  create table ${schema}.new_rows (post_id bigint, kind text, weight int);
  create table ${schema}.old_rows (post_id bigint, kind text, weight int);
  insert into ${schema}.new_rows values (9, 'like', 1);
  insert into ${schema}.old_rows values (9, 'like', 1);`

for (const place of ['a schema of its own', 'pg_temp']) {
  test(`a writer that shadows names and operators in ${place} changes no count and runs nothing as the owner`, async () => {
    const plain = await createBlog(db, tally)
    const conditional = await createBlog(db, tally, { source: { where: `kind = 'like' and weight > 0`, sum: 'weight + 1' } })
    const { role, client } = await createRole()
    const schema = place === 'pg_temp' ? 'pg_temp' : `evil_${role}`
    if (schema !== 'pg_temp') await db.pool.query(`create schema ${schema} authorization ${role}`)
    await db.pool.query(`grant usage on schema public to ${role}; grant temporary on database ${database()} to ${role}`)
    for (const { likes, posts } of [plain, conditional]) await db.pool.query(`grant select, insert, update, delete, truncate on ${likes} to ${role}; grant select on ${posts} to ${role}`)
    await client.query(evil(schema))
    for (const { likes, counter } of [plain, conditional]) {
      await client.query(`set search_path = ${schema}, pg_catalog, public`)
      await client.query(`insert into public.${likes} (post_id) values (1), (1), (2), (null)`)
      await client.query(`update public.${likes} set post_id = 3 where post_id operator(pg_catalog.=) 2`)
      await client.query(`update public.${likes} set weight = 5 where post_id operator(pg_catalog.=) 3`)
      await client.query(`delete from public.${likes} where id operator(pg_catalog.=) (select min(id) from public.${likes})`)
      expect(await violations(db, counter)).toEqual([])
      await client.query(`truncate public.${likes}`)
      await client.query(`insert into public.${likes} (post_id) values (1)`)
      expect(await violations(db, counter)).toEqual([])
      await applyAll(db.pool, counter)
      expect(await violations(db, counter)).toEqual([])
    }
    expect(await stored(db.pool, plain)).toEqual({ 1: 1 })
    expect(await stored(db.pool, conditional)).toEqual({ 1: 2 })
    await client.query('reset search_path')
    expect(await value(client, `select count(*)::int from ${schema}.loot where who::text <> current_user::text`)).toBe(0)
  })
}

/** What deliberately has no search_path of its own; all names in it are written out with their schema. */
const unpinned = [
  // Triggers without an expression of the user's: SET costs a writer throughput. The tests above shadow their names.
  '^source_[0-9]+_(insert|update|delete)$',
  // Called by insert_event() only, which has one.
  '^insert_event_[0-9]+$',
  // Parsed when it is created, so that it can be inlined into each INSERT.
  '^(slot_at|event_time|power_of_two)$',
  // Inlined into statements of functions that have one, which alone call it.
  '^(add_scores|score_level)$',
  // Could not COMMIT with it.
  '^reconcile$',
]

test('every function has a search_path of its own but for what is written out, PUBLIC has nothing, and who runs with whose rights is known', async () => {
  await createBlog(db, tally)
  await createBlog(db, tally, { source: { where: `kind = 'like'` }, rest: { milestones: [1] } })
  const odd = await column(
    db.pool,
    `select oid::regprocedure::text from pg_proc where pronamespace = 'pgtally'::regnamespace and prokind in ('f', 'p')
      and 'search_path=pg_catalog, pg_temp' <> all (coalesce(proconfig, '{}')) and proname !~ all ($1)
    union all -- With an expression of the user's they have one.
    select oid::regprocedure::text from pg_proc where pronamespace = 'pgtally'::regnamespace and prosrc ~ 'kind' and proname ~ '^source_' and proconfig is null`,
    [unpinned],
  )
  expect(odd).toEqual([])
  expect(await column(db.pool, `select proname::text from pg_proc where pronamespace = 'pgtally'::regnamespace and prosecdef and prorettype <> 'trigger'::regtype order by 1`))
    .toEqual(['add_event', 'add_events', 'expire_buckets', 'insert_event', 'is_stored', 'lock_measured', 'receive_batch', 'rotate', 'sync_triggers'])
  expect(await column(db.pool, `select viewname::text from pg_views where schemaname = 'pgtally' and viewname !~ '^carried_[0-9]+$'`)).toEqual([])
  const { role } = await createRole()
  const reachable = (schema: string) => `
    select 'function ' || oid::regprocedure from pg_proc where pronamespace = '${schema}'::regnamespace and has_function_privilege('${role}', oid, 'execute')
    union all select 'relation ' || oid::regclass from pg_class where relnamespace = '${schema}'::regnamespace and relkind in ('r', 'p', 'v')
      and (has_table_privilege('${role}', oid, 'select, insert, update, delete, truncate, references, trigger') or has_any_column_privilege('${role}', oid, 'select, insert, update, references'))
    union all select 'schema' where has_schema_privilege('${role}', '${schema}', 'usage, create')`
  expect(await column(db.pool, reachable('pgtally'))).toEqual([])
  // Nor where the database gives PUBLIC rights on whatever is made.
  await db.pool.query('alter default privileges grant all on tables to public; alter default privileges grant all on schemas to public')
  const generous = createTally({ pool: db.pool, schema: 'generous' })
  try {
    await generous.install()
    await generous.createCounter('views', {})
    expect(await column(db.pool, reachable('generous'))).toEqual([])
  } finally {
    await db.pool.query('alter default privileges revoke all on tables from public; alter default privileges revoke all on schemas from public')
    await generous.uninstall()
  }
})

test('a role without rights is told so', async () => {
  const { pool } = await createRole()
  const own = createTally({ pool })
  const other = createTally({ pool, schema: 'not_mine' })
  await expect(other.install()).rejects.toMatchObject({ code: 'PERMISSION_DENIED' })
  await expect(own.install()).rejects.toMatchObject({ code: 'PERMISSION_DENIED' })
  await expect(own.createCounter('x', { keyType: 'text' })).rejects.toMatchObject({ code: 'PERMISSION_DENIED' })
  await expect(own.dropCounter('x')).rejects.toMatchObject({ code: 'PERMISSION_DENIED' })
  await expect(own.uninstall()).rejects.toMatchObject({ code: 'PERMISSION_DENIED' })
  await expect(own.drain()).rejects.toMatchObject({ code: expect.stringMatching(/PERMISSION_DENIED|42501/) })
})

test('a worker without rights ends: it is no lost connection that might come back', async () => {
  const { pool } = await createRole()
  const { promise: warned, resolve } = Promise.withResolvers<string>()
  const worker = createTally({ pool }).worker({ logger: { debug() {}, info() {}, warn: (_, message) => resolve(message) } })
  const ended = await Promise.race([outcome(worker.done), warned])
  await outcome(worker.stop())
  expect(ended).toMatchObject({ code: expect.stringMatching(/PERMISSION_DENIED|42501/) })
})

test('a role without TRIGGER on the source cannot have it counted', async () => {
  const { role, pool } = await createRole()
  await db.pool.query(`create table guarded (post_id bigint); grant select on guarded to ${role}; grant create on database ${database()} to ${role}`)
  const own = createTally({ pool, schema: `own_${role}` })
  await own.install()
  await expect(own.createCounter('guarded', { source: { table: 'guarded', key: 'post_id' } })).rejects.toMatchObject({ code: 'PERMISSION_DENIED', message: expect.stringContaining('guarded') })
  await db.pool.query(`grant trigger on guarded to ${role}`)
  expect(await own.createCounter('guarded', { source: { table: 'guarded', key: 'post_id' } })).toBe(true)
  await db.pool.query('insert into guarded values (1), (1)')
  await own.drain()
  expect(await own.counter('guarded').get(1)).toBe(2)
  await own.uninstall()
})
