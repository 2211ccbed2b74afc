import { afterEach, describe, expect, test } from 'vitest'

import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, createBlog, installed, like, outcome, pid, stored, value, violations } from './support/fixtures.ts'

const databases: TestDatabase[] = []

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
  await db.pool.query('update pgtally.installation set schema_version = 999')
  const tooNew = { code: 'SCHEMA_TOO_NEW', message: expect.stringContaining('999') }
  await expect(tally.install()).rejects.toMatchObject(tooNew)
  await expect(tally.drain()).rejects.toMatchObject(tooNew)
  await expect(tally.worker().done).rejects.toMatchObject(tooNew)
  await db.pool.query('update pgtally.installation set schema_version = 0')
  await expect(tally.worker().done).rejects.toMatchObject({ code: 'SCHEMA_TOO_OLD' })
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
