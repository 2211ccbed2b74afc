import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { expect, test } from 'vitest'

import { createTally } from '../../src/index.ts'
import { createTestDatabase } from '../support/database.ts'
import { dedicatedServer } from '../support/server.ts'
import { Random } from './random.ts'
import { createCounters, tables, write } from './workload.ts'

const seconds = Number(process.env.PGTALLY_CHAOS_SECONDS ?? 20)
const seed = Number(process.env.PGTALLY_CHAOS_SEED ?? Math.floor(Math.random() * 2 ** 31))

interface Drift {
  counter: string
  key: string
  drift: string
}

/**
 * Every key whose count(source) is not stored + carried + pending, in one snapshot. A TRUNCATE that commits after a snapshot
 * empties what the snapshot saw, be it a slot or a source: so these are locked before the snapshot is taken. A key without a
 * row in the user's target has no count to be wrong.
 */
async function driftingKeys(client: pg.Client): Promise<Drift[]> {
  const { rows: queues } = await client.query<{ id: number; source: string }>(
    `select q.queue_id as id, s.source_table::text as source from pgtally.queue q join pgtally.source s using (queue_id)`,
  )
  await client.query('begin isolation level repeatable read')
  try {
    for (const { id, source } of queues) await client.query(`lock table pgtally.event_${id}, ${source} in access share mode`)
    const { rows: counters } = await client.query<{ name: string; query: string }>('select name, pgtally.drift_query(name) as query from pgtally.counter')
    const drifting: Drift[] = []
    for (const { name, query } of counters) {
      const condition = name === 'post_likes' ? 'and exists (select from posts where id = key)' : ''
      const { rows } = await client.query<{ key: string; drift: string }>(`select key::text, drift::text from (${query}) d where drift <> 0 ${condition}`)
      drifting.push(...rows.map((row) => ({ counter: name, ...row })))
    }
    return drifting
  } finally {
    await client.query('rollback')
  }
}

/** Resolves when the worker has begun to work, so that it is killed at work and not while it loads. */
async function startWorker(connectionString: string): Promise<ChildProcess> {
  const args = ['src/cli/main.ts', 'worker', '--database-url', connectionString]
  const worker = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(worker.stdout, 'data')
  worker.stdout.resume()
  return worker
}

/** Ends prepared transactions that nobody will come back for, until `finished` and none is left. */
async function resolveOrphans(pool: pg.Pool, finished: Promise<unknown>): Promise<void> {
  let over = false
  const end = async () => {
    await finished
    over = true
  }
  const ended = end()
  for (;;) {
    const last = over
    const { rows } = await pool.query<{ gid: string }>(
      `select gid from pg_prepared_xacts where database = current_database() and ($1 or prepared < now() - interval '1 second')`,
      [last],
    )
    for (const { gid } of rows) await pool.query(`commit prepared '${gid}'`).catch(() => {})
    if (last) return ended
    await sleep(100)
  }
}

test(`counts stay exact through ${seconds} s of mixed writers, killed workers and a server crash (seed ${seed})`, { timeout: seconds * 1000 + 90_000 }, async (context) => {
  await using server = await dedicatedServer(context, { max_prepared_transactions: '50', deadlock_timeout: '200ms' })
  await using db = await createTestDatabase(server.connectionString)
  const tally = createTally({ pool: db.pool })
  const random = new Random(seed)
  await db.pool.query(tables)
  await tally.install()
  // Rows that are there before the counters.
  await db.pool.query(`insert into likes (post_id, weight) select 1 + n % 40, n % 3 from generate_series(1, 500) n`)
  await createCounters(tally)

  const stopping = new AbortController()
  const { signal } = stopping
  const until = async (work: () => Promise<void>) => {
    while (!signal.aborted) await work()
  }

  const writers = Array.from({ length: 8 }, (_, index) => write(db.connectionString, random.fork(), index < 2 ? random.upTo(2500) : 0, signal))

  const workerRandom = random.fork()
  const workers = Array.from({ length: 3 }, () =>
    until(async () => {
      const worker = await startWorker(db.connectionString)
      const exited = once(worker, 'exit')
      await sleep(workerRandom.upTo(2000), undefined, { signal }).catch(() => {})
      worker.kill('SIGKILL')
      await exited
    }),
  )

  let audits = 0
  const auditor = until(async () => {
    const client = new pg.Client({ connectionString: db.connectionString })
    client.on('error', () => {})
    let drifting: Drift[] = []
    try {
      await client.connect()
      while (!signal.aborted && drifting.length === 0) {
        drifting = await driftingKeys(client)
        audits++
        await sleep(100)
      }
    } catch (error) {
      // The crash of the server, and it starting again.
      if (!(error instanceof Error)) throw error
      await sleep(100)
    } finally {
      await client.end().catch(() => {})
    }
    expect(drifting).toEqual([])
  })

  const terminator = until(async () => {
    await sleep(700)
    await db.pool
      .query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgtally' order by random() limit 1`)
      .catch(() => {})
  })

  const crashOnce = async () => {
    await sleep(seconds * 500)
    await server.crash()
    await server.restart()
  }
  const crash = crashOnce()

  try {
    await Promise.race([sleep(seconds * 1000), auditor])
    await crash
  } finally {
    stopping.abort()
    // The crash cuts writers off between PREPARE and COMMIT; what they leave holds locks that others wait for.
    const finished = Promise.all(writers)
    // Also after a failure: nobody may still be at work when the server goes.
    await Promise.allSettled([finished, resolveOrphans(db.pool, finished), crash, auditor, terminator, ...workers])
  }
  const committed = (await Promise.all(writers)).reduce((sum, count) => sum + count, 0)
  await auditor
  expect(await tally.drain()).toMatchObject({ failed: [] })

  const client = await db.connect()
  expect(await driftingKeys(client)).toEqual([])
  const wrong = await client.query(`
    select id, like_count, (select count(*) from likes where post_id = posts.id) as likes from posts
    where like_count <> (select count(*) from likes where post_id = posts.id)`)
  expect(wrong.rows).toEqual([])
  const { counters } = await tally.status()
  for (const { name, pendingEvents, carriedKeys, lastError, events, batches } of counters) {
    expect({ name, pendingEvents, carriedKeys, lastError }).toEqual({ name, pendingEvents: 0, carriedKeys: 0, lastError: null })
    expect({ name, enough: events > 100 && batches > 5 }).toEqual({ name, enough: true })
  }
  expect(audits).toBeGreaterThan(seconds)
  expect(committed).toBeGreaterThan(100)
  console.log(`${committed} transactions, ${audits} audits, ${counters.map(({ name, events, batches }) => `${name} ${events}/${batches}`).join(', ')}`)
})
