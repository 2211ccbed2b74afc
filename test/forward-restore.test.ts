import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'

import type { EmbeddedServer } from '../src/demo/embedded-server.ts'
import { createTally, type Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { installed, value } from './support/fixtures.ts'
import { findPostgresTools, toolsMissing } from './support/postgres-tools.ts'

const tools = await findPostgresTools()

let servers: EmbeddedServer[] = []
let directory: string
let target: TestDatabase
let total: Tally

beforeAll(async () => {
  if (tools === undefined) return
  directory = await mkdtemp(path.join(tmpdir(), 'pgtally-dumps-'))
  servers = await Promise.all([tools.startServer(), tools.startServer()])
  target = await createTestDatabase()
  total = await installed(target)
})

afterAll(async () => {
  if (tools === undefined) return
  await rm(directory, { recursive: true })
  await Promise.all([target.drop(), ...servers.map((server) => server.stop())])
})

beforeEach((context) => {
  if (tools === undefined) context.skip(toolsMissing)
})

let number = 0

// A source that was dumped and restored in another cluster, in each state that its last batch can have been in at the dump.
test.each([
  { state: 'never given', isOpen: false, isReceived: false },
  { state: 'given, and not received', isOpen: true, isReceived: false },
  { state: 'received, and not finished', isOpen: true, isReceived: true },
])('what was $state when the database was dumped counts once, or is refused', async ({ isOpen, isReceived }) => {
  const counter = `total_${++number}`
  await total.createCounter(counter, {})
  await using old = await createTestDatabase(servers[0]?.connectionString)
  await using restored = await createTestDatabase(servers[1]?.connectionString)
  const definition = { queue: 'likes', name: 'to total', to: total.counter(counter), pollIntervalMs: 5 }
  const pending = async (tally: Tally) => (await tally.status()).consumers[0]?.pendingEvents
  const like = (db: TestDatabase, key: number) => db.pool.query(`select pgtally.insert_event('likes', $1::bigint)`, [key])
  const counts = async () => {
    await total.drain()
    return Object.fromEntries(await total.counter<string>(counter).getMany(['1', '2', '3']))
  }
  const tally = await installed(old)
  await tally.createQueue('likes')
  {
    await using forward = tally.forward(definition)
    await tally.queue('likes').register('to total')
    for (const key of [1, 1]) {
      await like(old, key)
      await waitFor(async () => (await pending(tally)) === 0, { what: 'a batch' })
    }
    await forward.stop()
  }
  await like(old, 2)
  if (isOpen) await old.pool.query(`select pgtally.claim_batch('likes', 'to total', '0 seconds')`)
  if (isReceived) {
    await target.pool.query(`select pgtally.receive_batch($1, $2::jsonb, $3::text[], $4::int8[])`, [
      counter,
      ...Object.values((await old.pool.query<Record<string, string>>(`select e.batch::text, e.keys::text, e.deltas::text from pgtally.batch, pgtally.export_batch(batch_id) e where finished_at is null`)).rows[0] ?? {}),
    ])
  }
  const file = path.join(directory, `dump ${number}`)
  await tools?.run('pg_dump', old.connectionString, '--format=custom', `--file=${file}`)
  await tools?.run('pg_restore', restored.connectionString, '--exit-on-error', file)

  const own = createTally({ pool: restored.pool })
  const failed = async (error: RegExp) => waitFor(async () => {
    const { lastError } = (await own.status()).consumers[0] ?? {}
    return error.test(lastError ?? '') && (lastError as string)
  }, { what: `the error ${error}` })
  await using forward = own.forward(definition)
  await failed(/pgtally rebase/)
  await own.rebase()
  await like(restored, 3)
  // Only where the target is just where the restored source is, it is known to be what that goes on from.
  const message = await failed(isReceived ? /nothing was received from there before/ : /it goes on from where database "pgtally_test_\w+" of cluster \d+ is or was/)
  expect(await counts()).toEqual({ 1: 2, 2: isReceived ? 1 : 0, 3: 0 })
  await target.pool.query(/run in the counter's database: (.*)$/.exec(message)?.[1] ?? '')
  await waitFor(async () => (await pending(own)) === 0, { what: 'the rest' })
  // What was received of the batch in hand is for the operator to take away again.
  expect(await counts()).toEqual({ 1: 2, 2: isReceived ? 2 : 1, 3: 1 })
  expect(await value(target.pool, 'select count(*)::int from pgtally.received join pgtally.counter using (counter_id) where name = $1', [counter])).toBe(isReceived ? 2 : 1)
  await forward.stop()
})
