import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { afterAll, beforeAll, expect, test } from 'vitest'

import { createTally, type Logger, type Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { outcome, value, violations } from './support/fixtures.ts'
import { createRole, dropRoles, type TestRole } from './support/roles.ts'

// Nothing in here runs as a superuser, but for making the roles and looking.

let db: TestDatabase
const roles: TestRole[] = []
let owner: TestRole
let app: TestRole
let writer: TestRole
let reader: TestRole
let worker: TestRole
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  ;[owner, app, writer, reader, worker] = (await Promise.all(Array.from({ length: 5 }, () => createRole(db, roles)))) as [TestRole, TestRole, TestRole, TestRole, TestRole]
  const database = new URL(db.connectionString).pathname.slice(1)
  await db.pool.query(`grant create on database ${database} to ${owner.role}; create schema shop authorization ${owner.role}`)
  for (const { client } of roles) await client.query('set search_path = shop, public')
  await owner.client.query(`
    create table posts (id bigint primary key, like_count bigint not null default 0, title text);
    create table totals (kind text primary key, votes integer not null default 0);
    create table likes (id bigint generated always as identity primary key, post_id bigint references posts on delete cascade, user_id bigint);
    create table votes (kind text, at date) partition by range (at);
    create table votes_1 partition of votes for values from ('2025-01-01') to ('2026-01-01');
    insert into posts (id) select generate_series(1, 50);
    insert into likes (post_id) select n % 50 + 1 from generate_series(1, 200) n;
    insert into votes values ('up', '2025-02-01');
    grant usage on schema shop to public; grant select, insert, update, delete on likes, votes to ${app.role}; grant select on posts to ${app.role}`)
  tally = owner.tally
  await tally.install()
  // That was for the schema.
  await db.pool.query(`revoke create on database ${database} from ${owner.role}`)
  // One counter is there before the grant, the others come after it.
  await tally.createCounter('post_likes', {
    source: { table: 'shop.likes', key: 'post_id', data: ['user_id'] },
    target: { table: 'shop.posts', key: 'id', column: 'like_count' },
    milestones: [5, 6],
    rotationPeriodMs: 1000,
  })
  await tally.grant({ writers: [writer.role], readers: [reader.role], workers: [worker.role] })
  await tally.createCounter('votes', { source: { table: 'shop.votes', key: 'kind' }, target: { table: 'shop.totals', key: 'kind', column: 'votes' }, onMissing: 'insert' })
  await tally.createCounter('page_views', { keyType: 'text' })
  await tally.createQueue('mails', { keyType: 'text' })
})

afterAll(async () => {
  await dropRoles(db, roles)
  await db.drop()
})

/** A worker's logger that keeps its messages, and the warnings with what they are about. */
function listener() {
  const warnings: string[] = []
  const messages: string[] = []
  const logger: Logger = { debug: (_, message) => void messages.push(message), info() {}, warn: (details, message) => void warnings.push(`${message}: ${JSON.stringify(details)}`) }
  return { warnings, messages, logger }
}

async function refused({ client }: TestRole, sql: string): Promise<void> {
  expect({ sql, result: await outcome(client.query(sql)) }).toMatchObject({ sql, result: { code: '42501' } })
}

test('who writes to a source needs no right on pgtally', async () => {
  await app.client.query(`insert into likes (post_id, user_id) values (1, 7), (1, 8); update likes set post_id = 2 where user_id = 8; delete from likes where user_id = 7`)
  expect(await violations(db, 'post_likes')).toEqual([])
  for (const sql of ['select from pgtally.counter', `select pgtally.add_event('page_views', 'a')`, 'select from pgtally.event_1', `select pgtally.source_1_insert()`]) await refused(app, sql)
})

test('nobody but the owner makes what is to be the owner\'s, not even a superuser', async () => {
  const superuser = createTally({ pool: db.pool })
  const refusal = { message: expect.stringContaining(`SET ROLE ${owner.role}`) }
  await expect(superuser.createCounter('x', {})).rejects.toMatchObject({ code: 'PERMISSION_DENIED', ...refusal })
  await expect(superuser.createQueue('x')).rejects.toMatchObject({ code: '42501', ...refusal })
  await db.pool.query(`update pgtally.installation set functions_hash = 'older'`)
  await expect(superuser.install()).rejects.toMatchObject({ code: 'PERMISSION_DENIED', message: expect.stringContaining(`belongs to the role "${owner.role}"`) })
  expect((await tally.install()).to).toBeGreaterThan(0)
})

test('a worker runs all that `pgtally worker` does, once it has what grant() says is missing', async () => {
  const { missing } = await tally.grant({ workers: [worker.role] })
  expect(new Set(missing)).toEqual(new Set([
    `GRANT SELECT (id, like_count) ON shop.posts TO ${reader.role}`,
    `GRANT SELECT (id, like_count), UPDATE (like_count) ON shop.posts TO ${worker.role}`,
    `GRANT SELECT (kind, votes) ON shop.totals TO ${reader.role}`,
    `GRANT INSERT (kind, votes), SELECT (kind, votes), UPDATE (votes) ON shop.totals TO ${worker.role}`,
  ]))

  // Without: it says what it lacks and waits.
  const { warnings, messages, logger } = listener()
  await using running = worker.tally.worker({ pollIntervalMs: 5, idlePollIntervalMs: 20, logger })
  await waitFor(async () => warnings.some((warning) => warning.includes('permission denied for table posts')), { what: 'the worker to miss a right' })
  for (const statement of missing) await owner.client.query(statement)
  const goesOn = async () => (await tally.status()).counters.every(({ lastError, pendingEvents, carriedKeys }) => lastError === null && pendingEvents + carriedKeys === 0)
  await waitFor(goesOn, { what: 'the worker to go on' })
  warnings.length = 0

  // A new partition gets its triggers, slots are emptied, milestones are handed on.
  await owner.client.query(`create table votes_2 partition of votes for values from ('2026-01-01') to ('2027-01-01'); grant insert on votes_2 to ${app.role}`)
  const gotTriggers = () => value<boolean>(db.pool, `select count(*) = 4 from pg_trigger where tgrelid = 'shop.votes_2'::regclass`)
  await waitFor(gotTriggers, { what: 'the triggers of the new partition' })
  await app.client.query(`insert into votes_2 values ('up', '2026-02-01'), ('down', '2026-02-01'); insert into likes (post_id) select 3 from generate_series(1, 10)`)
  await waitFor(async () => (await value(owner.client, `select votes from totals where kind = 'up'`)) === 2, { what: 'the votes to be stored' })
  await waitFor(async () => (await tally.counter('post_likes').milestones(3)).length === 2, { what: 'milestones' })
  await waitFor(async () => messages.includes('slots emptied'), { what: 'a slot to be emptied' })
  expect(await worker.tally.drain()).toMatchObject({ failed: [] })
  expect(warnings.filter((warning) => !warning.includes('goes on'))).toEqual([])
  await running.stop()
  for (const name of ['post_likes', 'votes']) {
    expect(await violations(db, name)).toEqual([])
    expect(await tally.counter(name).audit()).toMatchObject({ driftingKeys: 0 })
  }
  expect((await worker.tally.status()).counters).toHaveLength(3)
})

test('a worker runs consumers, whichever, and sees to their failed events', async () => {
  const keys: string[] = []
  await using consumer = worker.tally.consumer({ queue: 'mails', name: 'sender', pollIntervalMs: 5, maxAttempts: 1, each: async ({ key }) => {
    keys.push(key)
    if (key === 'bad') throw new Error('no such address')
  } })
  await waitFor(async () => (await worker.tally.status()).consumers.length === 1, { what: 'the consumer to be registered' })
  await writer.tally.queue('mails').insert(writer.pool, { key: 'good' })
  await writer.tally.queue('mails').insert(writer.pool, { key: 'bad', data: { secret: true } })
  await waitFor(async () => (await reader.tally.queue('mails').deadLetters('sender')).length === 1, { what: 'a dead letter' })
  await consumer.stop()
  expect(new Set(keys)).toEqual(new Set(['good', 'bad']))
  const mails = worker.tally.queue('mails')
  expect([await mails.pause('sender'), await mails.resume('sender'), await mails.replay('sender'), await mails.skip('sender'), await mails.seek('sender', new Date(0))]).toEqual([true, true, 1, 0, 2])
  expect(await mails.purge('sender')).toBe(0)
})

test('a writer adds events and waits for them, and can do nothing else', async () => {
  const views = writer.tally.counter<string>('page_views')
  const token = await views.add(writer.pool, '/home', 2)
  const buffered = writer.tally.buffered<string>('page_views')
  buffered.add('/home')
  await buffered.close()
  await worker.tally.drain()
  await views.waitFor(token)
  expect(await reader.tally.counter('page_views').get('/home')).toBe(3)
  for (const sql of [
    'select from pgtally.counter', 'select from pgtally.event_1', 'insert into pgtally.event_1 (ev_key, ev_delta) values (1, 1)', `select pgtally.insert_event_1('1', 1, null)`,
    `select pgtally.get_counts('page_views', '{a}')`, 'select pgtally.counter_status()', `select pgtally.apply_batch('page_views')`, `select pgtally.rotate('page_views')`,
    `select pgtally.next_batch('mails', 'sender')`, `select pgtally.claim_batch('mails', 'sender', '1 s')`, 'select pgtally.finish_batch(1)', 'select pgtally.get_batch_events(1)',
    `select pgtally.skip('mails', 'sender')`, `select pgtally.seek('mails', 'sender', 'epoch')`, `select pgtally.dead_letters('mails', 'sender')`, `select pgtally.receive_batch('page_views', '{}', '{}', '{}')`,
    `select pgtally.create_queue('own')`, `select pgtally.grant_access(workers => array[current_user::text])`, `create table pgtally.own ()`,
  ]) await refused(writer, sql)
  await expect(writer.tally.counter('post_likes').add(writer.pool, 1)).rejects.toMatchObject({ code: 'INVALID_EVENT' })
})

test('a reader reads counts, status and dead letters, and audits what it may read; it changes nothing and sees no events\' data', async () => {
  const likes = reader.tally.counter('post_likes')
  await app.client.query('insert into likes (post_id) values (1)')
  const fresh = await likes.get(1, { fresh: true })
  expect(fresh).toMatchObject({ pending: 1, count: Number(await value(owner.client, 'select count(*) from likes where post_id = 1')) })
  expect(await likes.getVersioned(1)).toMatchObject({ count: fresh.stored })
  expect((await likes.milestones(3)).length).toBe(2)
  await likes.waitFor('3')
  const status = await reader.tally.status()
  expect(status.counters.map(({ name, problems }) => [name, problems])).toEqual([['page_views', []], ['post_likes', []], ['votes', []]])
  expect(status.consumers).toHaveLength(1)
  expect((await reader.tally.doctor()).notChecked).toEqual([])

  await expect(likes.audit()).rejects.toMatchObject({ code: '42501', message: expect.stringContaining('likes') })
  await owner.client.query(`grant select (post_id) on likes to ${reader.role}`)
  expect(await likes.audit()).toMatchObject({ checkedKeys: 50, driftingKeys: 0 })
  expect(await likes.audit({ keys: [1, 2] })).toMatchObject({ checkedKeys: 2 })
  expect((await likes.audit({ sample: 5 })).checkedKeys).toBeGreaterThan(0)
  await owner.client.query(`revoke select (post_id) on likes from ${reader.role}`)

  for (const sql of [
    'select ev_data from pgtally.event_1', 'select * from pgtally.event_1', 'select * from pgtally.event_1_0', `select pgtally.add_event('page_views', 'a')`, `select pgtally.insert_event('mails', 'a'::text)`,
    'update pgtally.consumer set last_error = null', 'delete from pgtally.failed_event', 'insert into pgtally.carry_1 (delta, events, key) values (1, 1, 1)', 'truncate pgtally.event_1_0',
    `select pgtally.apply_batch('page_views')`, `select pgtally.apply_carried('page_views')`, `select pgtally.rotate('page_views')`, `select pgtally.sync_triggers('votes')`,
    `select pgtally.claim_batch('mails', 'sender', '1 s')`, `select pgtally.next_batch('mails', 'sender')`, 'select pgtally.finish_batch(1)', 'select pgtally.get_batch_events(1)', 'select pgtally.export_batch(1)',
    `select pgtally.skip('mails', 'sender')`, `select pgtally.seek('mails', 'sender', 'epoch')`, `select pgtally.pause_consumer('mails', 'sender')`, `select pgtally.purge_dead_letters('mails', 'sender')`,
    `select pgtally.register_consumer('mails', 'spy')`, `select pgtally.reconcile_keys('votes', '{up}')`, `call pgtally.reconcile('votes')`,
    `select pgtally.measure(k, null, null, 10, null, true) from pgtally.counter k where name = 'page_views'`, `select pgtally.grant_access(workers => array[current_user::text])`,
  ]) await refused(reader, sql)
})

test('time buckets, scores and a ranking: a worker keeps them and empties their slots, a reader reads and audits them', async () => {
  await owner.client.query(`
    create table songs (id bigint primary key, plays bigint not null default 0, genre integer not null default 1);
    insert into songs select generate_series(1, 5);
    create table plays (id bigint generated always as identity, song bigint, at timestamptz not null default now());
    create index on plays (song); grant insert on plays to ${app.role}`)
  await tally.createCounter('plays', {
    source: { table: 'shop.plays', key: 'song', time: 'at' },
    target: { table: 'shop.songs', key: 'id', column: 'plays' },
    buckets: [{ width: '1 second', retain: '4 seconds' }, { width: '1 hour', retain: 'forever' }],
    ranking: true,
    trending: [{ halfLife: '1 minute' }],
  })
  const { missing } = await tally.grant({ workers: [worker.role] })
  for (const statement of missing.filter((text) => text.includes('shop.songs'))) await owner.client.query(statement)
  await owner.client.query(`grant select (genre) on songs to ${reader.role}; grant select (song, at) on plays to ${reader.role}`)

  const { warnings, messages, logger } = listener()
  await using running = worker.tally.worker({ pollIntervalMs: 5, logger })
  await app.client.query(`insert into plays (song, at) values (1, now() - interval '2 hours'), (1, now()), (2, now()), (3, now() + interval '1 day')`)
  const plays = reader.tally.counter('plays')
  await waitFor(async () => (await plays.top()).length === 3, { what: 'what was played to be counted' })
  // As if the day had passed, but for the row itself.
  const later = `pgtally.later_${await value<number>(db.pool, `select counter_id from pgtally.counter where name = 'plays'`)}`
  await db.pool.query(`update ${later} set time = date_bin('1 minute', now(), '2000-01-01'); update shop.plays set at = date_bin('1 minute', now(), '2000-01-01') where song = 3`)
  await app.client.query('insert into plays (song) values (2)')
  await waitFor(async () => value<boolean>(db.pool, `select not exists (select from ${later} where time <= now())`), { what: 'the score of what was ahead' })
  await waitFor(async () => messages.includes('slots of buckets emptied'), { what: 'a slot of buckets to be emptied' })
  await worker.tally.drain()
  expect(warnings.filter((warning) => warning.includes('"plays"'))).toEqual([])

  expect(await plays.top({ limit: 2, where: { genre: 1 } })).toEqual([{ key: '1', count: 2 }, { key: '2', count: 2 }])
  expect((await plays.top({ window: '4 hours' })).length).toBeGreaterThan(1)
  expect((await plays.trending()).map(({ key }) => key)).toContain('2')
  expect((await plays.series(1, { width: '1 hour' })).reduce((sum, { count }) => sum + count, 0)).toBe(2)
  // The one that was moved by hand.
  const { checkedKeys, drifts } = await plays.audit()
  expect({ checkedKeys, drifting: [...new Set(drifts.map(({ key }) => key))] }).toEqual({ checkedKeys: 5, drifting: ['3'] })
  for (const sql of [`select pgtally.expire_buckets('plays')`, `delete from ${later}`, `truncate ${later}`, `update ${later.replace('later', 'recent')} set score_1 = 0`]) await refused(reader, sql)
  await running.stop()
  await tally.dropCounter('plays')
})

test('a worker is not the owner: it defines, corrects and drops nothing, and writes no SQL that others run', async () => {
  for (const sql of [
    `select pgtally.create_queue('own')`, `select pgtally.create_counter('own')`, `select pgtally.drop_counter('votes')`, `select pgtally.drop_queue('mails')`, `select pgtally.drop_source(1)`,
    `select pgtally.unregister_consumer('mails', 'sender')`, `select pgtally.rebase('mails')`, `select pgtally.reconcile_keys('votes', '{up}')`, `call pgtally.reconcile('votes')`, `select pgtally.reset_keys('page_views', '{a}')`,
    `select pgtally.accept_batch('page_views', '{}')`, `select pgtally.renew_access()`, `select pgtally.revoke_access()`, `select pgtally.add_event('page_views', 'a')`,
    `update pgtally.source set where_condition = 'true'`, `update pgtally.source set sum_expression = '1'`, `update pgtally.source set data_columns = '{x}'`, `update pgtally.queue set key_type = 'text'`,
    `update pgtally.counter set target_table = 'pg_class'`, `delete from pgtally.counter`, `insert into pgtally.access values (current_user, 'writer')`, 'update pgtally.installation set schema_version = 0',
    'truncate pgtally.event_1_0', 'delete from pgtally.event_1', 'drop table pgtally.event_1', 'create table pgtally.own ()', `create trigger own before insert on pgtally.carry_1 execute function pgtally.source_1_insert()`,
    'select from shop.likes', 'insert into shop.likes (post_id) values (1)', 'update shop.posts set title = null', 'select title from shop.posts',
  ]) await refused(worker, sql)
  expect(await outcome(worker.tally.createCounter('own', { keyType: 'text' }))).toMatchObject({ code: 'PERMISSION_DENIED' })
  expect(await outcome(worker.tally.grant({ writers: [worker.role] }))).toMatchObject({ code: 'PERMISSION_DENIED', message: expect.stringContaining('by the role that has installed it') })
})

test('roles: unknown ones, several kinds in one, names that need quotes, those that are gone; taking back', async () => {
  await expect(tally.grant({ writers: ['nobody; drop table x'] })).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('CREATE ROLE') })
  for (const nothing of [{}, { writers: [] }, { writers: [''] }, { writer: ['x'] }]) await expect(tally.grant(nothing)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })

  const both = await createRole(db, roles)
  await tally.grant({ readers: [both.role], writers: [both.role] })
  await both.tally.counter('page_views').add(both.pool, '/both')
  expect(await both.tally.counter('page_views').get('/both', { fresh: true })).toMatchObject({ count: 1 })
  await tally.revoke({ readers: [both.role] })
  await refused(both, 'select from pgtally.counter')
  await both.tally.counter('page_views').add(both.pool, '/both')
  await tally.revoke({ writers: [both.role] })
  await refused(both, `select pgtally.add_event('page_views', 'a')`)
  expect(await value(db.pool, `select has_schema_privilege('${both.role}', 'pgtally', 'usage')`)).toBe(false)

  const odd = `pgtally "test' ${roles.length} ${both.role}`
  const quoted = `"${odd.replaceAll('"', '""')}"`
  const gets = () => value<boolean>(db.pool, `select has_table_privilege(rolname, to_regclass(format('pgtally.event_%s', (select max(queue_id) from pgtally.queue))), 'select') from pg_roles where rolname = $1`, [odd])
  await db.pool.query(`create role ${quoted}`)
  try {
    await tally.grant({ workers: [odd] })
    await tally.createQueue('before')
    expect(await gets()).toBe(true)
    // Another role of a name that was given rights gets none.
    await db.pool.query(`drop owned by ${quoted}; drop role ${quoted}; create role ${quoted}`)
    await tally.createQueue('after')
    expect(await gets()).toBe(false)
  } finally {
    await db.pool.query(`drop owned by ${quoted}; drop role ${quoted}`)
    await tally.revoke({ workers: [odd] })
  }
})

test('on the command line', async () => {
  const role = await createRole(db, roles)
  const pgtally = async (...args: string[]) => (await promisify(execFile)(process.execPath, [fileURLToPath(new URL('../src/cli/main.ts', import.meta.url)), ...args, '--database-url', owner.url])).stdout
  const granted = await pgtally('grant', '--writer', role.role, writer.role, '--reader', role.role)
  expect(granted).toContain('Granted.')
  expect(granted).toContain(`GRANT SELECT (id, like_count) ON shop.posts TO ${role.role};`)
  await role.tally.counter('page_views').add(role.pool, '/home')
  expect(await pgtally('revoke', '--writer', role.role, '--reader', role.role)).toBe('Revoked.\n')
  await refused(role, 'select from pgtally.counter')
  await expect(pgtally('grant')).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('name at least one') })
})

test('a queue that is made while a role is being granted rights is not missed', async () => {
  const late = await createRole(db, roles)
  const granting = await owner.pool.connect()
  await granting.query('begin')
  await granting.query('select pgtally.grant_access(workers => array[$1])', [late.role])
  const made = tally.createQueue('made meanwhile')
  await waitFor(() => value<boolean>(db.pool, `select exists (select from pg_locks where not granted and relation = 'pgtally.access'::regclass)`), { what: 'the queue to wait' })
  await granting.query('commit')
  granting.release()
  await made
  expect(await value(late.client, `select count(*)::int from pgtally.event_${await value(db.pool, `select pgtally.queue_id('made meanwhile')`)}`)).toBe(0)
})

test('the owner corrects, restores and removes it, and the counts stay', async () => {
  await owner.client.query('update posts set like_count = 1000 where id = 4')
  expect(await tally.counter('post_likes').reconcile()).toMatchObject({ driftingKeys: 1 })
  expect(await tally.rebase()).toEqual([])
  await worker.tally.drain()
  const counts = await value(owner.client, 'select array_agg(like_count order by id) from posts')
  expect(await tally.counter('post_likes').audit()).toMatchObject({ driftingKeys: 0 })
  expect(await reader.tally.uninstall().catch((error: unknown) => error)).toMatchObject({ code: 'PERMISSION_DENIED' })
  expect(await tally.uninstall()).toBe(true)
  await app.client.query('insert into likes (post_id) values (1)')
  expect(await value(owner.client, 'select array_agg(like_count order by id) from posts')).toEqual(counts)
  expect(await value(db.pool, `select count(*)::int from pg_trigger where not tgisinternal`)).toBe(0)
  expect(await value(db.pool, `select count(*)::int from pg_shdepend d join pg_roles r on r.oid = refobjid where rolname = '${writer.role}' and deptype = 'a'`)).toBe(0)
})
