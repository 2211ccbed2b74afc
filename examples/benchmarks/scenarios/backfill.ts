import { setTimeout as sleep } from 'node:timers/promises'

import type { Bench } from '../bench.ts'
import { paced } from '../clients.ts'
import { inTurn } from '../contest.ts'
import { startWorker } from '../methods/tally.ts'
import type { Metric } from '../results.ts'
import { createLargeTables } from './large-tables.ts'
import type { LargeTables } from './large-tables.ts'
import type { Scenario } from './scenario.ts'

const likesPerSecond = 1000

const metrics: Metric[] = [
  { key: 'stored', title: 'all stored, s', digits: 2, ratio: true },
  { key: 'counted', title: 'all counted, s', digits: 2 },
]

/** A counter on ten million likes that are there already, while more arrive; beside it the bare count and update, without either. */
export const backfill: Scenario = {
  name: 'backfill',
  description: 'a new counter on 10,000,000 likes, while more arrive',
  async run(bench) {
    const tables = await createLargeTables(bench)
    const ways = [
      { name: 'bare count and UPDATE, nothing else going on', measure: () => bare(bench) },
      { name: `pgtally, while ${likesPerSecond} likes/s arrive and a worker runs`, measure: () => createCounter(bench, tables) },
    ]
    const { rows, failed } = await inTurn(bench, 'backfill', ways, metrics, async ({ measure }) => {
      await bench.pool.query('update posts set like_count = 0 where like_count <> 0')
      await bench.pool.query('vacuum posts')
      await bench.pool.query('checkpoint')
      return measure()
    })
    return [{ id: 'backfill', title: `Backfill of ${tables.description}`, metrics, rows, failed, notes: ['Each time an audit found no drift, and in the end each count was right.'] }]
  },
}

async function bare({ pool }: Bench): Promise<Record<string, number>> {
  const stored = await seconds(() => pool.query('update posts set like_count = n from (select post_id, count(*) as n from likes group by 1) counts where id = post_id'))
  return { stored }
}

async function createCounter(bench: Bench, { counter, likeSomething }: LargeTables): Promise<Record<string, number>> {
  const { pool, tally } = bench
  await using worker = await startWorker(bench)
  const stopping = new AbortController()
  const load = paced(bench, likeSomething, likesPerSecond, stopping.signal)
  await sleep(500)
  let counted = 0
  const stored = await seconds(async () => {
    counted = await seconds(() => tally.createCounter('backfilled', counter))
    // What the worker still has to add.
    while ((await corrections(bench)) > 0) await sleep(10)
  })
  const { driftingKeys } = await tally.counter('backfilled').audit()
  stopping.abort()
  await load
  worker.check()
  await tally.drain()
  const { rows } = await pool.query<{ wrong: number }>('select count(*)::int as wrong from posts where like_count <> (select count(*) from likes where post_id = id)')
  if (driftingKeys !== 0 || rows[0]?.wrong !== 0) throw new Error(`${driftingKeys} keys drifted, ${rows[0]?.wrong} counts were wrong`)
  await tally.dropCounter('backfilled')
  return { stored, counted }
}

/** How many keys have a correction of the backfill that is not stored yet. */
async function corrections({ pool }: Bench): Promise<number> {
  const { rows } = await pool.query<{ keys: number }>(`select carried_keys::int as keys from pgtally.counter_status() where name = 'backfilled'`)
  return rows[0]?.keys ?? 0
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now()
  await work()
  return (performance.now() - began) / 1000
}
