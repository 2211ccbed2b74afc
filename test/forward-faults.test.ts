import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import pg from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

import type { EmbeddedServer } from '../src/demo/embedded-server.ts'
import type { Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { installed, value } from './support/fixtures.ts'
import { startProxy } from './support/proxy.ts'
import { startTestServer } from './support/server.ts'
import { beside, seed } from './support/storm.ts'

let servers: EmbeddedServer[]
let source: TestDatabase
let target: TestDatabase
let from: Tally
let to: Tally

beforeAll(async () => {
  servers = await Promise.all([startTestServer(), startTestServer()])
})

beforeEach(async () => {
  ;[source, target] = (await Promise.all(servers.map((server) => createTestDatabase(server.connectionString)))) as [TestDatabase, TestDatabase]
  ;[from, to] = await Promise.all([installed(source), installed(target)])
  await from.createQueue('likes')
  await from.queue('likes').register('to total')
  await to.createCounter('total', {})
  await source.pool.query('create table written (key bigint, delta bigint)')
  return async () => {
    await source.drop()
    await target.drop()
  }
})

afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop()))
})

const processFile = fileURLToPath(new URL('support/forward-process.ts', import.meta.url))

/** A process that forwards; killed, if it still runs, when it is disposed of. */
function startProcess({ sourceUrl = source.connectionString, targetUrl = target.connectionString } = {}) {
  const child = spawn(process.execPath, [processFile], { env: { ...process.env, SOURCE_URL: sourceUrl, TARGET_URL: targetUrl }, stdio: ['pipe', 'inherit', 'inherit'] })
  const ended = once(child, 'close')
  const kill = async () => {
    child.kill('SIGKILL')
    await ended
  }
  return { child, kill, [Symbol.asyncDispose]: kill }
}

const forwardHere = (counter = to.counter('total')) => from.forward({ queue: 'likes', name: 'to total', to: counter, leaseMs: 300, pollIntervalMs: 5 })
/** Writes an event, and down what was written. */
const write = (session: Pick<pg.Client, 'query'>, key: number, delta = 1) =>
  session.query(`with w as (insert into written values ($1, $2)) select pgtally.insert_event('likes', $1::bigint, $2::bigint)`, [key, delta])

const sums = (sql: string, { pool }: TestDatabase) => value<string>(pool, `select coalesce(json_object_agg(key, n order by key), '{}')::text from (${sql}) s where n <> 0`)

/** The counts of all that was written, by key. */
const written = () => sums('select key, sum(delta) as n from written group by key', source)

/** Those of the target, as soon as everything is forwarded. */
async function forwarded(): Promise<string> {
  const pending = async () => (await from.status()).consumers[0]
  await waitFor(async () => (await pending())?.pendingEvents === 0, { what: 'everything to be forwarded' }).catch(async (error: Error) => {
    throw new Error(`${error.message} ${JSON.stringify(await pending())}`)
  })
  expect(await to.drain()).toMatchObject({ failed: [] })
  return sums(`select key, value as n from pgtally.count_${await value<number>(target.pool, 'select counter_id from pgtally.counter')}`, target)
}

/** Sessions of a forward's process that wait for a lock. */
const waiting = (db: TestDatabase) =>
  waitFor(async () => value<boolean>(db.pool, `select exists (select from pg_stat_activity where application_name = 'forward' and datname = current_database() and wait_event_type = 'Lock')`), { what: 'the forward to wait for a lock' })
const received = () => value<number>(target.pool, 'select count(*)::int from pgtally.received')

describe('a process that is killed', () => {
  test('before the target has its batch: another one forwards it', async () => {
    const holder = await target.connect()
    await holder.query('begin; lock table pgtally.received')
    await using killed = startProcess()
    await write(source.pool, 1)
    await waiting(target)
    await killed.kill()
    await holder.query('commit')
    await using next = forwardHere()
    void next
    expect(await forwarded()).toBe(await written())
  })

  test('between what the target does and its commit: another one, that comes meanwhile, waits and does it', async () => {
    await using proxy = await startProxy(target.connectionString)
    const cut = proxy.loseMessage('COMMIT\0')
    await using killed = startProcess({ targetUrl: proxy.connectionString })
    await write(source.pool, 1)
    const { release } = await cut
    await killed.kill()
    await using next = startProcess()
    void next
    await waiting(target)
    expect(await received()).toBe(0)
    release()
    expect(await forwarded()).toBe(await written())
  })

  test("after the target's commit, before it finishes the batch in the source: another one finds that it is done", async () => {
    const [atTarget, atSource] = await Promise.all([target.connect(), source.connect()])
    await atTarget.query('begin; lock table pgtally.received')
    await using killed = startProcess()
    await write(source.pool, 1)
    await waiting(target)
    await atSource.query('begin')
    await atSource.query('select from pgtally.batch where finished_at is null for update')
    await atTarget.query('commit')
    await waitFor(async () => (await received()) === 1, { what: 'the batch' })
    await killed.kill()
    expect(await value(source.pool, 'select count(*)::int from pgtally.batch where finished_at is null')).toBe(1)
    await atSource.query('rollback')
    await using next = forwardHere()
    void next
    expect(await forwarded()).toBe(await written())
  })
})

describe('a link that is cut', () => {
  test.each([
    ['target', 'receive_batch', 'before the message'],
    ['target', 'receive_batch', 'before the answer'],
    ['target', 'COMMIT\0', 'before the message'],
    ['target', 'COMMIT\0', 'before the answer'],
    ['source', 'export_batch', 'before the answer'],
    ['source', 'finish_batch', 'before the message'],
    ['source', 'finish_batch', 'before the answer'],
  ])('to the %s, at %j, %s', async (where, message, when) => {
    const db = where === 'source' ? source : target
    await using proxy = await startProxy(db.connectionString)
    const pool = new pg.Pool({ connectionString: proxy.connectionString })
    pool.on('error', () => {})
    for (const delta of [1, 10]) await write(source.pool, 1, delta)
    const tally = createTally({ pool })
    const cut = when === 'before the answer' ? proxy.loseAnswer(message) : proxy.loseMessage(message)
    {
      await using consumer = (where === 'source' ? tally : from).forward({ queue: 'likes', name: 'to total', to: (where === 'source' ? to : tally).counter('total'), leaseMs: 300, pollIntervalMs: 5 })
      void consumer
      const lost = await cut
      await write(source.pool, 1, 100)
      // The server learns of it only now: a lock that the lost connection has is waited for.
      lost?.release()
      expect(await forwarded()).toBe(await written())
    }
    await pool.end()
  })

  test('so that the target says nothing any more: it is given up in time, and goes on', async () => {
    const holder = await target.connect()
    await holder.query('begin; lock table pgtally.received')
    await write(source.pool, 1)
    await using consumer = from.forward({ queue: 'likes', name: 'to total', to: to.counter('total'), pollIntervalMs: 5, timeoutMs: 300 })
    void consumer
    await waitFor(async () => /timeoutMs/.test((await from.status()).consumers[0]?.lastError ?? ''), { what: 'the error' })
    await holder.query('commit')
    expect(await forwarded()).toBe(await written())
    // The session that was given up notices that when it has the lock.
    await waitFor(async () => value<boolean>(target.pool, `select not exists (select from pg_stat_activity where datname = current_database() and state like 'idle in transaction%')`), { what: 'no open transaction' })
  })
})

test('a server that crashes, either of them, loses and doubles nothing', async () => {
  await using forwarder = startProcess()
  void forwarder
  let key = 0
  await using writer = beside(async () => {
    await write(source.pool, 1 + (key++ % 10)).catch(() => {})
  })
  for (const server of [servers[1], servers[0], servers[1]] as EmbeddedServer[]) {
    const { rounds } = writer
    await waitFor(async () => writer.rounds > rounds + 100 && (await received()) === 1, { what: 'some more' })
    await server.crash()
    await server.restart()
  }
  await writer.stop()
  expect(await forwarded()).toBe(await written())
}, 120_000)

test(`kills and cuts at random moments, with several processes, lose and double nothing (seed ${seed})`, async () => {
  const random = new Random(seed)
  await using started = new AsyncDisposableStack()
  const processes = [started.use(startProcess()), started.use(startProcess())]
  const writers = Array.from({ length: 2 }, () => {
    const own = random.fork()
    return beside(async () => {
      const client = await source.pool.connect()
      try {
        await client.query('begin')
        for (let n = own.upTo(5); n > 0; n--) await write(client, own.upTo(50), own.upTo(7) - 3)
        await client.query(own.next() < 0.1 ? 'rollback' : 'commit')
      } finally {
        client.release()
      }
    })
  })
  const batches = () => value<number>(source.pool, 'select max(batches)::int from pgtally.batch')
  for (let round = 0; round < 30; round++) {
    const before = await batches()
    const which = random.upTo(2) - 1
    const act = random.next()
    if (act < 0.4) {
      await processes[which]?.kill()
      processes[which] = started.use(startProcess())
    } else {
      const { pool } = act < 0.7 ? source : target
      await pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'forward' and datname = current_database() and random() < 0.7`)
    }
    await waitFor(async () => (await batches()) > before + random.upTo(3) - 1, { what: 'some more batches' })
  }
  for (const writer of writers) await writer.stop()
  expect(writers.every(({ rounds }) => rounds > 0)).toBe(true)
  expect(await forwarded()).toBe(await written())
}, 120_000)
