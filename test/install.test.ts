import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'

import { afterEach, describe, expect, test } from 'vitest'

import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, column, createBlog, installed, like, outcome, pid, stored, value, violations } from './support/fixtures.ts'

const databases: TestDatabase[] = []

/** All objects of the database that do not belong to PostgreSQL itself. */
function userObjects(db: TestDatabase): Promise<string[]> {
  return column(
    db.pool,
    `select 'schema ' || nspname from pg_namespace where oid >= 16384
    union all select 'relation ' || oid::regclass from pg_class where oid >= 16384
    union all select 'function ' || oid::regprocedure from pg_proc where oid >= 16384
    union all select 'trigger ' || tgname from pg_trigger where oid >= 16384
    union all select 'type ' || oid::regtype from pg_type where oid >= 16384
    union all select 'default rights ' || oid from pg_default_acl`,
  )
}

afterEach(async () => {
  for (const db of databases.splice(0)) await db.drop()
})

async function fresh(): Promise<TestDatabase> {
  const db = await createTestDatabase()
  databases.push(db)
  return db
}

test('installs once, and says from which version to which', async () => {
  const db = await fresh()
  const tally = createTally({ pool: db.pool })
  const { from, to } = await tally.install()
  expect(from).toBe(0)
  expect(to).toBeGreaterThan(0)
  expect(await tally.install()).toEqual({ from: to, to })
})

test('twenty installs at once, with the same counters', async () => {
  const db = await fresh()
  await db.pool.query('create table likes (post_id bigint)')
  const counters = { definitions: { likes: { source: { table: 'likes', key: 'post_id' } }, views: { keyType: 'text' as const } } }
  const results = await Promise.all(Array.from({ length: 20 }, () => createTally({ pool: db.pool, counters }).install()))
  expect(results.filter(({ from }) => from === 0)).toHaveLength(1)
  expect(await value(db.pool, 'select count(*)::int from pgtally.counter')).toBe(2)
})

test('an upgrade of the functions while the application and a worker are at it', async () => {
  const db = await fresh()
  const tally = await installed(db)
  const blog = await createBlog(db, tally)
  await using worker = tally.worker({ pollIntervalMs: 5 })
  const written = new AbortController()
  const writers = Array.from({ length: 2 }, async () => {
    while (!written.signal.aborted) await like(db.pool, blog, 1)
  })
  for (let n = 0; n < 3; n++) {
    await db.pool.query(`update pgtally.installation set functions_hash = $1`, [`older ${n}`])
    await tally.install()
    expect(await violations(db, blog.counter)).toEqual([])
  }
  written.abort()
  await Promise.all(writers)
  await tally.drain()
  await worker.stop()
  expect(await violations(db, blog.counter)).toEqual([])
  expect(await stored(db.pool, blog)).toEqual({ 1: await value(db.pool, `select count(*)::int from ${blog.likes}`) })
})

test('an upgrade of the functions leaves what the user has built on them', async () => {
  const db = await fresh()
  const tally = await installed(db)
  await db.pool.query('create view monitoring as select name, pending_events from pgtally.counter_status()')
  await db.pool.query(`update pgtally.installation set functions_hash = 'older'`)
  await tally.install()
  expect((await db.pool.query('select * from monitoring')).rows).toEqual([])
})

test('a schema of a newer version is left alone by everything', async () => {
  const db = await fresh()
  const tally = await installed(db)
  const blog = await createBlog(db, tally)
  await tally.createQueue('mails')
  const version = await value(db.pool, 'select schema_version from pgtally.installation')
  await db.pool.query('update pgtally.installation set schema_version = 999')
  const counter = tally.counter(blog.counter)
  const queue = tally.queue('mails')
  const calls: Record<string, () => Promise<unknown>> = {
    install: () => tally.install(),
    uninstall: () => tally.uninstall(),
    grant: () => tally.grant({ readers: ['somebody'] }),
    revoke: () => tally.revoke({ readers: ['somebody'] }),
    createCounter: () => tally.createCounter('x', {}),
    dropCounter: () => tally.dropCounter(blog.counter),
    createQueue: () => tally.createQueue('x'),
    dropQueue: () => tally.dropQueue('mails'),
    drain: () => tally.drain(),
    rebase: () => tally.rebase(),
    status: () => tally.status(),
    worker: () => tally.worker().done,
    consumer: () => tally.consumer({ queue: 'mails', name: 'x', handler: async () => {} }).done,
    forward: () => tally.forward({ queue: 'mails', name: 'x', to: counter }).done,
    audit: () => counter.audit(),
    'audit of keys': () => counter.audit({ keys: [1] }),
    reconcile: () => counter.reconcile(),
    'reconcile keys': () => counter.reconcile({ keys: [1] }),
    reset: () => counter.reset(1),
    resetAll: () => counter.resetAll(),
    register: () => queue.register('x'),
    skip: () => queue.skip('x'),
    deadLetters: () => queue.deadLetters('x'),
  }
  for (const [name, call] of Object.entries(calls)) {
    expect({ name, error: await outcome(call()) }).toMatchObject({ name, error: { code: 'SCHEMA_TOO_NEW', message: expect.stringContaining('999') } })
  }
  await db.pool.query('update pgtally.installation set schema_version = 0')
  for (const name of ['worker', 'consumer', 'drain', 'status', 'audit', 'createCounter', 'grant']) {
    expect({ name, error: await outcome(calls[name]?.() ?? Promise.resolve()) }).toMatchObject({ name, error: { code: 'SCHEMA_TOO_OLD' } })
  }
  // Nothing was changed; and what only reads or appends in one statement goes on, as the application must.
  await db.pool.query('update pgtally.installation set schema_version = $1', [version])
  expect((await tally.status()).counters).toMatchObject([{ name: blog.counter, problems: [] }])
})

test('not installed: each call says so', async () => {
  const db = await fresh()
  const tally = createTally({ pool: db.pool })
  const notInstalled = { code: 'NOT_INSTALLED', message: expect.stringContaining('pgtally install') }
  await expect(tally.drain()).rejects.toMatchObject(notInstalled)
  await expect(tally.status()).rejects.toMatchObject(notInstalled)
  await expect(tally.createCounter('x', { keyType: 'text' })).rejects.toMatchObject(notInstalled)
  await expect(tally.dropCounter('x')).rejects.toMatchObject(notInstalled)
  await expect(tally.counter('x').get('a')).rejects.toMatchObject(notInstalled)
  await expect(tally.counter('x').add(db.pool, 'a')).rejects.toMatchObject(notInstalled)
  await expect(tally.worker().done).rejects.toMatchObject(notInstalled)
  expect(await tally.uninstall()).toBe(false)
})

test('a schema that is someone else\'s is not touched', async () => {
  const db = await fresh()
  await db.pool.query('create schema taken; create table taken.precious (a int)')
  const tally = createTally({ pool: db.pool, schema: 'taken' })
  await expect(tally.install()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('"taken"') })
  await expect(tally.uninstall()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  expect(await value(db.pool, 'select count(*)::int from taken.precious')).toBe(0)
})

for (const schemas of [['tally_one'], ['tally_one', 'tally_2']]) {
  test(`in another schema: ${schemas.join(' and ')}, with one source`, async () => {
    const db = await fresh()
    await db.pool.query('create table likes (post_id bigint, kind text)')
    const tallies = schemas.map((schema) => createTally({ pool: db.pool, schema }))
    for (const tally of tallies) {
      await tally.install()
      await tally.createCounter('likes', { source: { table: 'likes', key: 'post_id', where: `kind <> 'pgtally.x'` } })
    }
    await db.pool.query(`insert into likes values (1, 'a'), (1, 'pgtally.x'); truncate likes; insert into likes values (1, 'a'), (2, 'b')`)
    for (const tally of tallies) {
      expect(await violations(db, 'likes', tally.schema)).toEqual([])
      expect(await tally.drain()).toMatchObject({ failed: [] })
      expect(await tally.counter('likes').getMany([1, 2, 3])).toEqual(new Map([[1, 1], [2, 1], [3, 0]]))
      expect((await tally.status()).counters).toMatchObject([{ name: 'likes', pendingEvents: 0, source: 'public.likes' }])
      expect(await tally.uninstall()).toBe(true)
    }
    expect(await value(db.pool, 'select count(*)::int from pg_trigger where not tgisinternal')).toBe(0)
  })
}

test('when the database\'s default isolation is another one', async () => {
  const db = await fresh()
  await db.pool.query(`alter database ${new URL(db.connectionString).pathname.slice(1)} set default_transaction_isolation = 'serializable'`)
  const pool = db.pool
  // From here on in new sessions.
  await pool.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()')
  const session = await db.connect()
  expect(await value(session, 'show transaction_isolation')).toBe('serializable')
  const tally = createTally({ pool })
  await tally.install()
  const blog = await createBlog(db, tally)
  await like(session, blog, 1)
  expect(await tally.drain()).toEqual({ events: 1, failed: [] })
  expect(await stored(session, blog)).toEqual({ 1: 1 })
})

describe('uninstalling', () => {
  test('takes away all of it, and leaves the user\'s tables and counts', async () => {
    const db = await fresh()
    const tally = await installed(db)
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 2)
    await applyAll(db.pool, blog.counter)
    expect(await tally.uninstall()).toBe(true)
    await like(db.pool, blog, 1)
    expect(await stored(db.pool, blog)).toEqual({ 1: 2 })
    expect(await value(db.pool, `select count(*)::int from pg_trigger where not tgisinternal`)).toBe(0)
    expect(await tally.uninstall()).toBe(false)
    await tally.install()
    await tally.createCounter(blog.counter, { source: { table: blog.likes, key: 'post_id' }, target: { table: blog.posts, key: 'id', column: 'like_count' } })
    await tally.drain()
    expect(await stored(db.pool, blog)).toEqual({ 1: 3 })
  })

  test('with all that there may be: roles, consumers, milestones, what was forwarded, partitions', async () => {
    const db = await fresh()
    const role = `pgtally_test_${randomBytes(6).toString('hex')}`
    await db.pool.query(`create role ${role}`)
    try {
      const before = await userObjects(db)
      const tally = await installed(db)
      await db.pool.query(await readFile(new URL('schema/scenario.sql', import.meta.url), 'utf8'))
      await tally.grant({ writers: [role], readers: [role], workers: [role] })
      const counts = 'select array_agg(like_count order by id) from posts'
      const kept = await value(db.pool, counts)
      expect(await tally.uninstall()).toBe(true)
      expect(await value(db.pool, counts)).toEqual(kept)
      expect(await value(db.pool, 'select count(*)::int from likes')).toBeGreaterThan(1000)
      await db.pool.query(`insert into likes (post_id) values (1); update likes set post_id = 2 where post_id = 1; delete from likes; truncate votes; insert into votes values (1, '2021-01-01')`)
      await db.pool.query('drop table posts, likes, votes')
      expect(await userObjects(db)).toEqual(before)
    } finally {
      // Without rights on anything, so it can be dropped as it is.
      await db.pool.query(`drop role ${role}`)
    }
  })

  test('does not deadlock with a transaction of the application', async () => {
    const db = await fresh()
    const tally = await installed(db)
    const blog = await createBlog(db, tally)
    const application = await db.connect()
    await application.query('begin')
    await application.query(`select count(*) from ${blog.likes}`)
    const backend = await pid(application)
    const uninstalled = outcome(tally.uninstall())
    // It waits for the application, in whatever way.
    await waitFor(async () => value<boolean>(db.pool, 'select exists (select from pg_stat_activity where $1 = any (pg_blocking_pids(pid)))', [backend]), { what: 'uninstall to wait' })
    const liked = await outcome(like(application, blog, 1))
    await application.query('commit')
    expect([liked, await uninstalled]).toEqual(['done', 'done'])
  })
})
