import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'

import type pg from 'pg'
import { expect, test } from 'vitest'

import { createTally } from '../../src/index.ts'
import type { Measurement, Tally } from '../../src/index.ts'
import { createTestDatabase, waitFor } from '../support/database.ts'
import { dedicatedServer } from '../support/server.ts'
import { soon, timeViolations } from '../support/times.ts'
import { Random } from './random.ts'
import { createCounters, tables, write } from './workload.ts'

const seconds = Number(process.env.PGTALLY_CHAOS_SECONDS ?? 10)
const seed = Number(process.env.PGTALLY_CHAOS_SEED ?? Math.floor(Math.random() * 2 ** 31))

/** What the audits of all counters find; and what a reconciliation finds, which must be nothing, too. */
async function measureAll(tally: Tally): Promise<Measurement[]> {
  const { counters } = await tally.status()
  const audits: Measurement[] = []
  for (const { name } of counters) audits.push(await tally.counter(name).audit())
  audits.push(await tally.counter('post_likes').reconcile())
  return audits.filter(({ driftingKeys }) => driftingKeys > 0)
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

test(`counts stay exact through ${seconds} s of mixed writers, killed workers and a server crash (seed ${seed})`, { timeout: seconds * 1000 + 150_000 }, async (context) => {
  await using server = await dedicatedServer(context, { max_prepared_transactions: '50', deadlock_timeout: '200ms' })
  await using db = await createTestDatabase(server.connectionString)
  const tally = createTally({ pool: db.pool })
  const random = new Random(seed)
  await db.pool.query(tables)
  await tally.install()
  // Rows that are there before the counters.
  await db.pool.query(`insert into likes (post_id, weight) select 1 + n % 40, n % 3 from generate_series(1, 500) n`)
  await createCounters(tally, db.pool)

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
    // A rejection is the terminated connection, or the crash of the server and it starting again.
    const drifting = await measureAll(tally).then(
      (found) => (audits++, found),
      () => [],
    )
    expect(drifting).toEqual([])
    await sleep(100)
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
    // On a busy machine it takes longer until the workers, and not only drain() at the end, have done something.
    const enough = async () => audits > 3 && (await tally.status()).counters.every(({ events, batches }) => events > 100 && batches > 1)
    await Promise.race([waitFor(() => enough().catch(() => false), { what: 'enough work' }), auditor])
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

  expect(await measureAll(tally)).toEqual([])
  const wrong = await db.pool.query(`
    select id, like_count, (select count(*) from likes where post_id = posts.id) as likes from posts
    where like_count <> (select count(*) from likes where post_id = posts.id)`)
  expect(wrong.rows).toEqual([])
  expect(await soon(() => timeViolations(db.pool, 'timed'))).toEqual([])
  const { counters } = await tally.status()
  for (const { name, pendingEvents, carriedKeys, lastError } of counters) {
    expect({ name, pendingEvents, carriedKeys, lastError }).toEqual({ name, pendingEvents: 0, carriedKeys: 0, lastError: null })
  }
  expect(committed).toBeGreaterThan(100)
  console.log(`${committed} transactions, ${audits} audits, ${counters.map(({ name, events, batches }) => `${name} ${events}/${batches}`).join(', ')}`)
})
