import pg from 'pg'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'

import { createTally, type Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, createBlog, installed, like, stored, value, type Blog } from './support/fixtures.ts'
import { startAddress, startReplication, type Replication } from './support/replication.ts'
import { recorder, said } from './support/recorder.ts'
import { beside, startCommand } from './support/storm.ts'

// In the order in which they stand here: the last one makes the standby the primary.

let servers: Replication
let db: TestDatabase
let tally: Tally
let pool: pg.Pool
let reader: Tally
let blog: Blog

// Not before all, where nothing can be skipped.
beforeEach(async (context) => {
  if (servers as Replication | undefined) return
  servers = await startReplication(context, { synchronous: false })
  db = await createTestDatabase(servers.primary.connectionString)
  tally = await installed(db)
  blog = await createBlog(db, tally, { rest: { milestones: [2], rotationPeriodMs: 1000 } })
  await tally.createCounter('views', { keyType: 'text' })
  await servers.caughtUp()
  pool = new pg.Pool({ connectionString: servers.standby.url(db.connectionString) })
  pool.on('error', () => {})
  reader = createTally({ pool })
}, 60_000)

afterAll(async () => {
  await pool?.end()
  await Promise.allSettled([db?.drop(), servers?.[Symbol.asyncDispose]()])
})

const counter = () => reader.counter<number>(blog.counter)

test('counts, status and audits can be read on a standby, and are those of the moment that it has come to', async () => {
  await like(db.pool, blog, 1, 3)
  await tally.drain()
  const holder = await db.connect()
  await holder.query(`begin; select from ${blog.posts} where id = 2 for no key update`)
  await like(db.pool, blog, 2)
  await apply(db.pool, blog.counter)
  await like(db.pool, blog, 1, 2)
  await servers.caughtUp()

  expect(await counter().get(1)).toBe(3)
  expect(Object.fromEntries(await counter().getMany([1, 2, 3]))).toEqual({ 1: 3, 2: 0, 3: 0 })
  expect(Object.fromEntries(await counter().getMany([1, 2], { fresh: true }))).toEqual({ 1: { count: 5, stored: 3, carried: 0, pending: 2 }, 2: { count: 1, stored: 0, carried: 1, pending: 0 } })
  expect(await counter().getVersioned(1)).toEqual(await tally.counter<number>(blog.counter).getVersioned(1))
  expect(await counter().milestones()).toMatchObject([{ key: '1', threshold: 2, value: 3 }])
  const { counters } = await reader.status()
  expect(counters.find(({ name }) => name === blog.counter)).toMatchObject({ pendingEvents: 1, carriedKeys: 1, events: 2, problems: [] })
  expect(await counter().audit()).toMatchObject({ checkedKeys: 10, driftingKeys: 0 })
  expect(await counter().audit({ sample: 3 })).toMatchObject({ checkedKeys: 3, driftingKeys: 0 })
  expect(await counter().audit({ keys: [1] })).toMatchObject({ checkedKeys: 1, driftingKeys: 0 })
  await holder.query('rollback')

  // It is not only that nothing is seen there.
  await db.pool.query(`update ${blog.posts} set like_count = like_count + 4 where id = 3`)
  await servers.caughtUp()
  expect((await counter().audit()).drifts).toMatchObject([{ key: '3', source: 0, stored: 4, drift: -4 }])
  await db.pool.query(`update ${blog.posts} set like_count = like_count - 4 where id = 3`)
  await servers.caughtUp()
})

test('audits and fresh reads on a standby find no drift while likes are written, applied and slots are emptied', async () => {
  let audits = 0
  {
    await using running = new AsyncDisposableStack()
    running.use(tally.worker({ pollIntervalMs: 5 }))
    running.use(beside(() => like(db.pool, blog, 4)))
    const emptied = () => value<string>(pool, `select string_agg(pg_relation_filenode(inhrelid::regclass)::text, ' ') from pg_inherits where inhparent = 'pgtally.event_1'::regclass`)
    const before = await emptied()
    let emptyings = 0
    for (let last = before; emptyings < 2 || audits < 20; ) {
      expect(await counter().audit()).toMatchObject({ driftingKeys: 0 })
      const text = `select (select count(*) from ${blog.likes} where post_id = 4) as likes, stored + carried + pending as count from pgtally.get_fresh_counts($1, '{4}')`
      // Refused when a slot was emptied in that very moment; get() reads again then.
      const { rows } = await pool.query<{ likes: string; count: string }>(text, [blog.counter]).catch((error: pg.DatabaseError) => ({ rows: error.code === 'TL004' ? [] : [{ likes: '', count: error.message }] }))
      expect(rows[0]?.count).toBe(rows[0]?.likes)
      expect((await counter().get(4, { fresh: true })).count).toBeGreaterThanOrEqual(Number(rows[0]?.likes ?? 0))
      audits++
      const now = await emptied()
      if (now !== last) emptyings++
      last = now
    }
  }
  await tally.drain()
  await servers.caughtUp()
  expect(await counter().get(4)).toBe(await value<number>(db.pool, `select count(*)::int from ${blog.likes} where post_id = 4`))
})

test('waitFor() on a standby waits for the end of the transaction and for its replay, and then reads what was written', async () => {
  const client = await db.connect()
  await client.query('begin')
  await like(client, blog, 5)
  const token = await tally.transactionToken(client)
  // A younger one, so that the snapshots of the standby end above the first.
  await like(db.pool, blog, 6)
  await servers.caughtUp()
  await expect(counter().waitFor(token, { timeoutMs: 100 })).rejects.toMatchObject({ code: 'TIMEOUT' })
  await client.query('commit')
  await servers.caughtUp()
  await expect(counter().waitFor(token, { timeoutMs: 100 })).rejects.toMatchObject({ code: 'TIMEOUT' })
  await using worker = tally.worker()
  await counter().waitFor(token, { key: 5 })
  expect(await counter().get(5)).toBe(1)
  await worker.stop()

  const reading = await pool.connect()
  await reading.query('begin isolation level repeatable read')
  await expect(reading.query('select pgtally.is_stored($1, $2::text::xid8)', [blog.counter, token])).rejects.toMatchObject({ code: 'TL004' })
  await reading.query('rollback')
  reading.release()
})

test('a fresh read is refused whose pending events were taken away by a standby that catches up', async () => {
  await tally.drain()
  await like(db.pool, blog, 7, 3)
  // Old versions of rows are kept meanwhile: for those the replay would wait until the reader is through.
  const keeper = await db.connect()
  await keeper.query('begin isolation level repeatable read; select 1')
  await servers.caughtUp()
  await servers.standby.pool.query('select pg_wal_replay_pause()')
  await waitFor(async () => value<boolean>(servers.standby.pool, `select pg_get_wal_replay_pause_state() = 'paused'`), { what: 'the pause' })
  const reading = await pool.connect()
  try {
    const slots = () => value<number>(db.pool, 'select sum(pg_relation_size(inhrelid::regclass))::int from pg_inherits where inhparent = $1::regclass', ['pgtally.event_1'])
    await tally.drain()
    await waitFor(async () => (await value<number>(db.pool, 'select pgtally.rotate($1)', [blog.counter])) > 0 || (await slots()) === 0, { what: 'an emptied slot' })
    await waitFor(async () => (await value<number>(db.pool, 'select pgtally.rotate($1)', [blog.counter]), (await slots()) === 0), { what: 'all slots emptied' })
    await reading.query('begin isolation level repeatable read')
    expect(await value(reading, `select like_count::int from ${blog.posts} where id = 7`)).toBe(0)
    await servers.standby.pool.query('select pg_wal_replay_resume()')
    await servers.caughtUp()
    await expect(counter().get(7, { executor: reading, fresh: true })).rejects.toMatchObject({ code: 'ISOLATION', message: expect.stringContaining('On a standby, read it again') })
  } finally {
    await reading.query('rollback')
    reading.release()
    await keeper.query('rollback')
    await servers.standby.pool.query('select pg_wal_replay_resume()')
  }
  expect(await counter().get(7, { fresh: true })).toEqual({ count: 3, stored: 3, carried: 0, pending: 0 })
})

describe('what writes is refused with one error that says why', () => {
  test.each<[string, (reader: Tally) => Promise<unknown>]>([
    ['reconcile', (own) => own.counter(blog.counter).reconcile()],
    ['drain', (own) => own.drain()],
    ['createCounter', (own) => own.createCounter('another', { keyType: 'text' })],
    ['dropCounter', (own) => own.dropCounter('views')],
    ['createQueue', (own) => own.createQueue('another')],
    ['add', (own) => own.counter<string>('views').add(pool, '/home')],
    ['buffered', async (own) => {
      const views = own.buffered<string>('views')
      views.add('/home')
      await views.close()
    }],
    ['transactionToken', (own) => own.transactionToken(pool)],
    ['register', (own) => own.queue(blog.counter).register('another')],
    ['uninstall', (own) => own.uninstall()],
  ])('%s', async (_, work) => {
    await expect(work(reader)).rejects.toMatchObject({ name: 'PgtallyError', code: 'READ_ONLY', message: expect.stringMatching(/standby.*[Cc]onnect to the primary/) })
  })

  test('on the command line as well; audit and status work', async () => {
    const url = servers.standby.url(db.connectionString)
    const [audit, status, reconcile] = await Promise.all([['audit', blog.counter], ['status'], ['reconcile', blog.counter]].map(async (args) => {
      await using command = startCommand(url, args)
      return await command.ended
    }))
    expect(audit).toMatchObject({ code: 0, stdout: expect.stringContaining('no drift') })
    expect(status).toMatchObject({ code: 0, stderr: '' })
    expect(reconcile).toMatchObject({ code: 1, stderr: expect.stringContaining('connect to the primary') })
  })
})

test('a worker, a writer and a consumer whose address leads to a standby go on when it leads to the primary, though nobody cuts their connections', async () => {
  await db.pool.query('create table pairs (post_id bigint, user_id bigint, primary key (post_id, user_id))')
  await tally.queue(blog.counter).register('handled')
  await servers.caughtUp()
  await using address = await startAddress(servers.standby.url(db.connectionString))
  const own = new pg.Pool({ connectionString: address.connectionString, idleTimeoutMillis: 0 })
  own.on('error', () => {})
  const logger = recorder()
  const ownTally = createTally({ pool: own })
  const handled: string[] = []
  {
    await using running = new AsyncDisposableStack()
    running.use(ownTally.worker({ logger }))
    await like(db.pool, blog, 8)
    const consumer = running.use(ownTally.consumer({ queue: blog.counter, name: 'handled', handler: async (batch) => { for await (const { key } of batch) handled.push(key) } }))
    const writer = running.use(ownTally.writer<number, number>({ table: 'pairs', key: 'post_id', member: 'user_id' }))
    await said(logger, 'The server is a standby')
    await expect(writer.add(1, 1)).rejects.toMatchObject({ code: '25006' })
    address.moveTo(db.connectionString)
    // The consumer has not begun yet, or has begun in vain.
    void consumer
    await waitFor(async () => (await stored(db.pool, blog))[8] === 1, { what: 'the like to be applied' })
    await waitFor(async () => writer.add(1, 1).catch(() => false), { what: 'a connection of the writer that leads to the primary' })
    await waitFor(async () => handled.includes('8'), { what: 'the consumer' })
    // Said once, however long it lasted.
    expect(logger.messages.filter((message) => message.includes('standby'))).toHaveLength(1)
  }
  await own.end()
})

test('a worker on a standby waits, and goes on when that is promoted', async () => {
  const logger = recorder()
  await like(db.pool, blog, 9, 2)
  await servers.caughtUp()
  await using worker = reader.worker({ logger })
  await said(logger, 'The server is a standby')
  await servers.primary.crash()
  await servers.standby.promote()
  await waitFor(async () => (await counter().get(9)) === 2, { what: 'the likes to be applied' })
  await said(logger, 'connected to the database again')
  await like(pool, blog, 9)
  await waitFor(async () => (await counter().get(9)) === 3, { what: 'another like' })
  expect(await counter().audit()).toMatchObject({ driftingKeys: 0 })
  await worker.stop()
})
