import { afterAll, beforeAll, expect, test } from 'vitest'

import { createTally, type Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { violations } from './support/fixtures.ts'
import { createRole, dropRoles, type TestRole } from './support/roles.ts'

let db: TestDatabase
let owner: TestRole
let tally: Tally
const roles: TestRole[] = []
const definition = { source: { table: 'rls.likes', key: 'post_id' }, target: { table: 'rls.posts', key: 'id', column: 'like_count' } }

/** The owner of the tables and of pgtally, who is no superuser: FORCE hides rows from him, too. */
const force = (table: 'posts' | 'likes', forced: boolean) => owner.client.query(`alter table rls.${table} ${forced ? '' : 'no'} force row level security`)

beforeAll(async () => {
  db = await createTestDatabase()
  owner = await createRole(db, roles)
  tally = owner.tally
  await db.pool.query(`grant create on database ${new URL(db.connectionString).pathname.slice(1)} to ${owner.role}; create schema rls authorization ${owner.role}; grant usage on schema rls to public`)
  await owner.client.query(`
    create table rls.posts (id bigint primary key, like_count bigint not null default 0);
    create table rls.likes (post_id bigint);
    insert into rls.posts select generate_series(1, 4);
    insert into rls.likes values (1), (2), (2);
    alter table rls.posts enable row level security; create policy odd on rls.posts using (id % 2 = 1);
    alter table rls.likes enable row level security; create policy odd on rls.likes using (post_id % 2 = 1) with check (true)`)
  await tally.install()
})

afterAll(async () => {
  await dropRoles(db, roles)
  await db.drop()
})

test('a counter is refused where its creator would not see all rows; else all of them are counted, whatever their writer sees', async () => {
  for (const table of ['posts', 'likes'] as const) {
    await force(table, true)
    const refusal = { code: 'INVALID_DEFINITION', message: expect.stringMatching(new RegExp(`hides rows of rls.${table} from the role "${owner.role}".*BYPASSRLS`)) }
    await expect(tally.createCounter('secret', definition)).rejects.toMatchObject(refusal)
    await force(table, false)
  }
  await tally.createCounter('secret', definition)
  expect(await violations(db, 'secret')).toEqual([])
  const writer = await createRole(db, roles)
  await owner.client.query(`grant select, insert, delete on rls.likes to ${writer.role}`)
  // He deletes those that he sees.
  await writer.client.query('insert into rls.likes values (2), (3), (3); delete from rls.likes')
  expect(await violations(db, 'secret')).toEqual([])
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await tally.counter('secret').getMany([1, 2, 3])).toEqual(new Map([[1, 0], [2, 3], [3, 0]]))
  expect(await tally.counter('secret').audit()).toMatchObject({ driftingKeys: 0 })
})

test('a worker whom it hides rows of the target from says so, and nothing is lost', async () => {
  const worker = await createRole(db, roles)
  const { missing } = await tally.grant({ workers: [worker.role] })
  for (const statement of missing) await owner.client.query(statement)
  await owner.client.query(`grant select on rls.likes to ${worker.role}; insert into rls.likes values (2)`)
  const told = expect.stringMatching(/hides rows of rls.posts from the role .*ALTER ROLE .* BYPASSRLS/)
  expect(await worker.tally.drain()).toMatchObject({ failed: [{ error: told }] })
  await expect(worker.tally.counter('secret').audit()).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: told })
  // As for everyone else, it decides what is read.
  expect(await worker.tally.counter('secret').get(2)).toBe(0)
  await db.pool.query(`alter role ${worker.role} bypassrls`)
  expect(await worker.tally.drain()).toMatchObject({ failed: [] })
  expect(await worker.tally.counter('secret').audit()).toMatchObject({ driftingKeys: 0 })
  expect(await worker.tally.counter('secret').get(2)).toBe(4)
})

test('forced later on: what is written is counted, and what cannot be counted is refused', async () => {
  for (const table of ['posts', 'likes'] as const) await force(table, true)
  await owner.client.query('insert into rls.likes values (4)')
  await expect(owner.client.query('truncate rls.likes')).rejects.toMatchObject({ code: '42501', message: expect.stringContaining('row-level security') })
  expect(await tally.drain()).toMatchObject({ failed: [{ counter: 'secret' }] })
  await expect(tally.counter('secret').audit()).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  await expect(tally.counter('secret').reconcile()).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  await force('posts', false)
  // Of the source alone.
  await expect(tally.counter('secret').audit({ keys: [1] })).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  await force('likes', false)
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await violations(db, 'secret')).toEqual([])
  await owner.client.query('truncate rls.likes')
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await tally.counter('secret').get(2)).toBe(0)
})

test('the superuser\'s own installation counts rows that are hidden from their owner', async () => {
  await tally.dropCounter('secret')
  await force('likes', true)
  const superuser = createTally({ pool: db.pool, schema: 'of_superuser' })
  await superuser.install()
  await superuser.createCounter('all', { source: definition.source })
  await owner.client.query('insert into rls.likes values (2), (1)')
  expect(await superuser.drain()).toMatchObject({ failed: [] })
  expect(await superuser.counter('all').getMany([1, 2])).toEqual(new Map([[1, 1], [2, 1]]))
  await owner.client.query('truncate rls.likes')
  await superuser.drain()
  expect(await superuser.counter('all').audit()).toMatchObject({ driftingKeys: 0 })
  expect(await superuser.uninstall()).toBe(true)
})
