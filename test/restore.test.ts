import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

import pg from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

import type { EmbeddedServer } from '../src/demo/embedded-server.ts'
import { createTally } from '../src/index.ts'
import { commandLine, here } from './support/command-line.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { blocked, installed, outcome, pid, value } from './support/fixtures.ts'
import { findPostgresTools, toolsMissing, type PostgresTools } from './support/postgres-tools.ts'
import { createApplication, eventCounts, eventTables, everSince, expectExactCounts, goOn, phases, queues, take, takeAll, write, written, wrong } from './support/restored-application.ts'
import { auditRows, createTimedBlog, settle, timeViolations } from './support/times.ts'

const tools = await findPostgresTools()

/** Its transaction ids are far above those of the other. */
let high: EmbeddedServer
let low: EmbeddedServer
/** One on each, in the middle of its work. */
let applications: { high: TestDatabase; low: TestDatabase }
let dumps: string
let dumped = 0

beforeAll(async () => {
  if (tools === undefined) return
  dumps = await mkdtemp(path.join(tmpdir(), 'pgtally-dumps-'))
  ;[high, low] = await Promise.all([tools.startServer(), tools.startServer()])
  await using db = await createTestDatabase(high.connectionString)
  await burn(db, 30_000)
  applications = { low: await createApplication(low), high: await createApplication(high) }
})

afterAll(async () => {
  if (dumps !== undefined) await rm(dumps, { recursive: true, force: true })
  await Promise.all([high?.stop(), low?.stop()])
})

const anyServer = 'on any server'

beforeEach((context) => {
  if (tools === undefined && context.task.suite?.name !== anyServer) context.skip(toolsMissing)
})

function given(): PostgresTools {
  if (tools === undefined) throw new Error(toolsMissing)
  return tools
}

/** Gives out transaction ids up to that one. */
async function burn(db: TestDatabase, id: number): Promise<void> {
  await db.pool.query(`do $$ begin while pg_current_xact_id() < '${id}' loop commit; end loop; end $$`)
}

const cli = ({ connectionString }: TestDatabase, ...args: string[]) => here(connectionString, ...args)

/** A dump of that database, or of the application on that server. */
async function dump(from: TestDatabase | 'high' | 'low', ...options: string[]): Promise<string> {
  const file = path.join(dumps, `dump ${++dumped}`)
  await given().run('pg_dump', (typeof from === 'string' ? applications[from] : from).connectionString, `--file=${file}`, ...options)
  return file
}

/** The entries of a dump, such that one slot's index comes before the data of the others, as it can with several jobs. */
async function indexFirst(file: string, db: TestDatabase): Promise<string> {
  const entries = (await given().run('pg_restore', db.connectionString, '--list', file)).split('\n')
  const isData = (entry: string) => entry.includes(' TABLE DATA ')
  const isFirstSlot = (entry: string) => / pgtally event_\d_0(_ev_txid_idx)? /.test(entry)
  const first = entries.findIndex(isData)
  const pulled = [...entries.filter((entry) => isData(entry) && isFirstSlot(entry)), ...entries.filter((entry) => / INDEX pgtally /.test(entry) && isFirstSlot(entry))]
  const list = path.join(dumps, 'list')
  await writeFile(list, [...entries.slice(0, first), ...pulled, ...entries.slice(first).filter((entry) => !pulled.includes(entry))].join('\n'))
  return list
}

const custom = '--format=custom'
const pgRestore = async (db: TestDatabase, file: string, ...options: string[]) => given().run('pg_restore', db.connectionString, '--exit-on-error', ...options, file)
const psql = async (db: TestDatabase, file: string) => given().run('psql', db.connectionString, '--no-psqlrc', '--quiet', '--set=ON_ERROR_STOP=1', `--file=${file}`)

const ways: [name: string, from: 'high' | 'low', to: 'high' | 'low', dumpOptions: string[], restore: (db: TestDatabase, file: string) => Promise<unknown>][] = [
  ['whose transaction ids are higher', 'low', 'high', [custom], pgRestore],
  ['as INSERTs', 'high', 'low', ['--format=plain', '--inserts'], psql],
  ['in a single transaction', 'high', 'low', [custom], (db, file) => pgRestore(db, file, '--single-transaction')],
  ['with an index before the data of other slots, as several jobs may', 'high', 'low', [custom], async (db, file) => pgRestore(db, file, `--use-list=${await indexFirst(file, db)}`)],
]

test('restored into a cluster whose transaction ids are lower: the command line says what is to be done, and does it', async () => {
  const file = await dump('high', custom)
  await using db = await createTestDatabase(low.connectionString)
  await pgRestore(db, file)
  expect(await cli(db, 'status')).toMatchObject({ code: 1, stdout: expect.stringMatching(/\npost_likes: .*another database cluster.*Run: pgtally rebase/) })
  const wrongly = await goOn(db, async () => {
    expect(await cli(db, 'rebase')).toMatchObject({ code: 0, stderr: '', stdout: expect.stringMatching(/^post_likes: goes on here, with \d+ events pending\.\nviews: goes on here, with \d+ events pending\.\n$/) })
  })
  expect(wrongly).toEqual([])
  expect(await cli(db, 'rebase')).toMatchObject({ code: 0, stderr: '', stdout: 'All positions are those of this cluster already.\n' })
})

describe('restored into another cluster, nothing is applied until a rebase, and then everything exactly once', () => {
  for (const [name, from, to, dumpOptions, restore] of ways) {
    test(`${name}`, async () => {
      const file = await dump(from, ...dumpOptions)
      await using db = await createTestDatabase({ high, low }[to].connectionString)
      await restore(db, file)
      expect(await goOn(db)).toEqual([])
    })
  }
})

test('time buckets, scores and a ranking come along, and go on after a rebase', async () => {
  await using from = await createTestDatabase(high.connectionString)
  await installed(from)
  const { counter, likes } = await createTimedBlog(from, { buckets: [{ width: '1 minute', retain: '3 hours' }, { width: '1 day', retain: 'forever', time_zone: 'Europe/Berlin' }] })
  const like = (db: TestDatabase) => db.pool.query(`insert into ${likes} (post_id, at) select 1 + n % 10, now() - (n - 5) * interval '11 minutes' from generate_series(1, 100) n`)
  await like(from)
  await settle(from.pool, counter)
  await like(from)
  const file = await dump(from, custom)
  await using to = await createTestDatabase(low.connectionString)
  await pgRestore(to, file)
  await createTally({ pool: to.pool }).rebase()
  await to.pool.query(`delete from ${likes} where id % 3 = 0`)
  await like(to)
  await settle(to.pool, counter)
  expect(await timeViolations(to.pool, counter)).toEqual([])
  expect(await auditRows(to.pool, counter)).toEqual([])
})

test('restored into another database of the same cluster, it just goes on', async () => {
  const file = await dump('high', custom)
  await using db = await createTestDatabase(high.connectionString)
  await pgRestore(db, file)
  const tally = createTally({ pool: db.pool })
  for (const { problems } of (await tally.status()).counters) expect(problems).toEqual([])
  await write(db.pool, phases.restored)
  expect(await tally.drain()).toMatchObject({ failed: [] })
  for (const consumer of Object.keys(everSince)) await take(db, consumer)
  expect(await wrong(db, everSince)).toEqual([])
  await expectExactCounts(db, tally)
  expect(await tally.rebase()).toEqual([])
})

test('from one cluster to another and back, slots keep their events until a rebase, and are emptied again after it', async () => {
  const first = await dump('high', custom)
  await using there = await createTestDatabase(low.connectionString)
  await pgRestore(there, first)
  await createTally({ pool: there.pool }).rebase()
  await takeAll(there)
  await write(there.pool, phases.rebased)
  await take(there, 'done')
  await write(there.pool, phases.rebased)

  const second = await dump(there, '--format=plain')
  await using back = await createTestDatabase(high.connectionString)
  await psql(back, second)
  const tally = createTally({ pool: back.pool })
  expect((await tally.rebase()).map(({ queue }) => queue)).toEqual(queues)
  await write(back.pool, phases.rebased)
  await takeAll(back)
  expect(await wrong(back, everSince)).toEqual([])
  await expectExactCounts(back, tally)

  // Everything is finished by now, and old enough. In this cluster that would empty the slots.
  const third = await dump(back, custom)
  await using again = await createTestDatabase(low.connectionString)
  await pgRestore(again, third, '--jobs=2')
  await again.pool.query(`update pgtally.batch set finished_at = finished_at - interval '1 hour'`)
  const kept = await eventCounts(again)
  expect(Math.min(...kept)).toBeGreaterThan(0)
  const slot = () => value<number>(again.pool, `select current_slot from pgtally.queue_status() where name = 'views'`)
  const rotate = () => value<number>(again.pool, `select sum(pgtally.rotate(name))::int from pgtally.queue`)
  const seen = new Set<number>()
  await waitFor(async () => {
    expect(await rotate()).toBe(0)
    return seen.add(await slot()).size === 2
  }, { what: 'writers to use another slot' })
  expect(await eventCounts(again)).toEqual(kept)
  expect(await createTally({ pool: again.pool }).rebase()).toEqual(queues.map((queue) => ({ queue, pendingEvents: 0 })))
  await write(again.pool, phases.rebased)
  await takeAll(again)
  await waitFor(async () => (await rotate()) > 0 && (await eventCounts(again)).every((count) => count === 0), { what: 'empty slots' })
  expect(await wrong(again, everSince)).toEqual([])
})

/** Starts a rebase in a session of its own, which waits for a lock by now. */
async function blockedRebase(db: TestDatabase, queue: string) {
  const session = await db.connect()
  const backend = await pid(session)
  const result = outcome(session.query('select pgtally.rebase($1)', [queue]))
  await blocked(db, backend)
  return { session, backend, result }
}

const isOwn = (db: TestDatabase, queue: string) =>
  value<boolean>(db.pool, 'select bool_and(system_identifier = pgtally.system_identifier()) from pgtally.consumer where queue_id = pgtally.queue_id($1)', [queue])

describe(`${anyServer}`, () => {
  test('positions that are said to be of another cluster are refused, and go on after a rebase', async () => {
    await using db = await createTestDatabase()
    const tally = await installed(db)
    await tally.createCounter('views', { keyType: 'text' })
    await db.pool.query(`select pgtally.register_consumer('views', 'reader')`)
    const open = await db.connect()
    await open.query('begin')
    await tally.counter<string>('views').add(open, 'open')
    await tally.counter<string>('views').add(db.pool, 'home', 2)
    await db.pool.query(`select pgtally.next_batch('views', 'reader'); update pgtally.consumer set system_identifier = system_identifier - 1`)
    expect(await tally.drain()).toMatchObject({ failed: [{ counter: 'views', error: expect.stringContaining('pgtally rebase') }] })
    expect(await tally.rebase()).toEqual([{ queue: 'views', pendingEvents: 1 }])
    expect(await tally.rebase()).toEqual([])
    await open.query('commit')
    expect(await tally.drain()).toEqual({ events: 2, failed: [] })
    expect(await tally.counter<string>('views').getMany(['home', 'open'])).toEqual(new Map([['home', 2], ['open', 1]]))
    const batch = await value<string>(db.pool, `select pgtally.next_batch('views', 'reader')`)
    expect(await value(db.pool, `select array_agg(ev_key order by ev_key) from pgtally.get_batch_events($1)`, [batch])).toEqual(['home', 'open'])
  })
})

describe('a rebase', () => {
  let db: TestDatabase
  beforeEach(async () => {
    const file = await dump('high', custom)
    db = await createTestDatabase(low.connectionString)
    await pgRestore(db, file)
    return db.drop
  })

  test('that is killed between two queues is completed by the next', async () => {
    const holder = await db.connect()
    await holder.query(`begin; select pgtally.lock_consumer('views', 'behind')`)
    const child = spawn(process.execPath, [commandLine, 'rebase', '--database-url', db.connectionString], { stdio: 'ignore' })
    await waitFor(() => isOwn(db, 'post_likes'), { what: 'the first queue to be done' })
    child.kill('SIGKILL')
    await once(child, 'close')
    await write(db.pool, phases.restored)
    await holder.query('commit')
    expect(await isOwn(db, 'views')).toBe(false)
    expect(await cli(db, 'rebase', '--json').then(({ stdout }) => JSON.parse(stdout) as unknown)).toEqual([{ queue: 'views', pendingEvents: expect.any(Number) }])
    await takeAll(db)
    expect(await wrong(db, everSince)).toEqual([])
    await expectExactCounts(db, createTally({ pool: db.pool }))
  })

  test('whose session is ended has changed nothing, and two at once do it once', async () => {
    const holder = await db.connect()
    await holder.query(`begin; select pgtally.lock_consumer('views', 'reading')`)
    const first = await blockedRebase(db, 'views')
    await value(db.pool, 'select pg_terminate_backend($1)', [first.backend])
    expect(await first.result).toMatchObject({ code: '57P01' })
    expect(await isOwn(db, 'views')).toBe(false)
    const [second, third] = [await blockedRebase(db, 'views'), await blockedRebase(db, 'views')]
    await holder.query('commit')
    expect(await Promise.all([second.result, third.result])).toEqual(['done', 'done'])
    await createTally({ pool: db.pool }).rebase()
    await takeAll(db)
    expect(await wrong(db, everSince)).toEqual([])
  })

  test('beside a consumer that is being registered', async () => {
    const registering = await db.connect()
    await registering.query('begin')
    await write(registering, phases.restored)
    for (const queue of queues) await registering.query(`select pgtally.register_consumer($1, 'newcomer')`, [queue])
    const rebased = await blockedRebase(db, 'views')
    await write(db.pool, phases.newcomer)
    await registering.query('commit')
    expect(await rebased.result).toBe('done')
    await createTally({ pool: db.pool }).rebase()
    await takeAll(db, 'newcomer')
    // Whoever registers is given what its own transaction writes, before or after.
    expect(await wrong(db, { ...everSince, newcomer: phases.restored })).toEqual([])
  })

  test('beside a transaction that has a consumer in hand and goes on to the queue', async () => {
    const seeking = await db.connect()
    await seeking.query(`begin; select pgtally.lock_consumer('views', 'behind')`)
    const rebased = await blockedRebase(db, 'views')
    // And not 40P01: their locks do not cross.
    expect(await outcome(seeking.query(`select pgtally.seek('views', 'behind', now())`))).toMatchObject({ code: 'TL005' })
    await seeking.query('rollback')
    expect(await rebased.result).toBe('done')
  })

  test('beside a transaction that finishes a batch from before the dump', async () => {
    const batch = await value<string>(db.pool, `select batch_id from pgtally.batch where finished_at is null order by batch_id limit 1`)
    const { rows } = await applications.high.pool.query<{ ev_key: string; ev_delta: string }>('select ev_key, ev_delta from pgtally.get_batch_events($1)', [batch])
    const finishing = await db.connect()
    await finishing.query('begin')
    for (const { ev_key, ev_delta } of rows) await finishing.query(`insert into received values ('post_likes', 'reading', $1, $2)`, [ev_key, ev_delta])
    await finishing.query('select pgtally.finish_batch($1)', [batch])
    const rebased = await blockedRebase(db, 'post_likes')
    await finishing.query('commit')
    expect(await rebased.result).toBe('done')
    await createTally({ pool: db.pool }).rebase()
    await takeAll(db)
    expect(await wrong(db, everSince)).toEqual([])
  })

  test('among writers, workers and consumers that do not pause', async () => {
    const tally = createTally({ pool: db.pool })
    await using worker = tally.worker({ pollIntervalMs: 1 })
    const stop = new AbortController()
    const until = async (work: () => Promise<unknown>) => {
      while (!stop.signal.aborted) await work()
    }
    const slowly = async () => {
      const session = await db.connect()
      await session.query('begin')
      await write(session, phases.restored)
      await write(session, phases.restored)
      await session.query('commit')
      await session.end()
    }
    const taken = async () => {
      await takeAll(db).catch((error: { code?: string }) => {
        if (error.code !== 'TL005') throw error
      })
    }
    const background = Promise.all([until(() => write(db.pool, phases.restored)), until(slowly), until(slowly), until(slowly), until(taken)])
    const before = written
    await waitFor(async () => written > before + 50, { what: 'writers at work' })
    expect(await tally.rebase()).toHaveLength(2)
    const after = written
    await waitFor(async () => written > after + 50, { what: 'writers to go on' })
    stop.abort()
    await background
    await worker.stop()
    await takeAll(db)
    expect(await wrong(db, everSince)).toEqual([])
    await expectExactCounts(db, tally)
  })
})

test('what was finished before the dump can be read again after the rebase', async () => {
  const file = await dump('high', custom)
  await using db = await createTestDatabase(low.connectionString)
  await pgRestore(db, file)
  const kept = await eventCounts(db)
  await write(db.pool, phases.restored)
  await createTally({ pool: db.pool }).rebase()
  await takeAll(db)
  expect(await wrong(db, everSince)).toEqual([])
  await db.pool.query(`delete from received; select pgtally.seek(name, 'done', '-infinity') from pgtally.queue`)
  await take(db, 'done')
  expect(await value(db.pool, 'select count(*)::int from received')).toBeGreaterThan(kept[0] + kept[1])
  expect(await wrong(db, { done: 0 })).toEqual([])
})

test('what is done to indexes and tables after a restore does not make new events old ones', async () => {
  const file = await dump('high', custom)
  await using db = await createTestDatabase(low.connectionString)
  await pgRestore(db, file)
  await write(db.pool, phases.restored)
  for (const table of eventTables) {
    await db.pool.query(`reindex table concurrently ${table}`)
    for (const slot of [0, 1, 2]) await db.pool.query(`vacuum (full, freeze) ${table}_${slot}`)
  }
  await write(db.pool, phases.restored)
  await createTally({ pool: db.pool }).rebase()
  await takeAll(db)
  expect(await wrong(db, everSince)).toEqual([])
})

describe('before the rebase, in a queue with positions of the old cluster', () => {
  test('a consumer registered in the new one is given nothing, and after it what was emitted since it was registered', async () => {
    const file = await dump('high', custom)
    await using db = await createTestDatabase(low.connectionString)
    await pgRestore(db, file)
    for (const queue of queues) await db.pool.query(`select pgtally.register_consumer($1, 'newcomer')`, [queue])
    await write(db.pool, phases.newcomer)
    // Until the ids of restored events are those of transactions here.
    await burn(db, await value<number>(db.pool, `select max(ev_txid)::text::int + 1 from pgtally.event_1`))
    await expect(take(db, 'newcomer')).rejects.toMatchObject({ code: 'TL005' })
    await createTally({ pool: db.pool }).rebase()
    await takeAll(db, 'newcomer')
    expect(await wrong(db, { ...everSince, newcomer: phases.newcomer })).toEqual([])
  })

  test('a counter created in the new one is not backfilled, and exact when it is after it', async () => {
    const file = await dump('high', custom)
    await using db = await createTestDatabase(low.connectionString)
    await pgRestore(db, file)
    const tally = createTally({ pool: db.pool })
    const create = () => tally.createCounter('newcomer', { queue: 'post_likes' })
    await expect(create()).rejects.toMatchObject({ code: 'OTHER_CLUSTER' })
    await tally.rebase()
    await create()
    await tally.drain()
    expect(await tally.counter('newcomer').audit()).toMatchObject({ driftingKeys: 0 })
  })
})

/** A database that is there already. */
function openDatabase(connectionString: string): TestDatabase {
  const pool = new pg.Pool({ connectionString, max: 20 })
  pool.on('error', () => {})
  const clients: pg.Client[] = []
  const connect = async () => {
    const client = new pg.Client({ connectionString })
    clients.push(client)
    await client.connect()
    return client
  }
  const close = async () => {
    await Promise.allSettled([...clients.map((client) => client.end()), pool.end()])
  }
  return { connectionString, pool, connect, drop: close, [Symbol.asyncDispose]: close }
}

// The last one, since it takes the server's data away.
test('after pg_upgrade it goes on in the same way', async () => {
  await using upgraded = await given().startServer()
  const { password } = new URL(upgraded.connectionString)
  const from = new URL(applications.high.connectionString)
  await applications.high.pool.query(`alter role postgres password '${password}'`)
  await given().upgrade(high, upgraded, password)
  const url = new URL(upgraded.connectionString)
  url.pathname = from.pathname
  await using db = openDatabase(url.href)
  expect(await goOn(db)).toEqual([])
}, 120_000)
