import { setTimeout as sleep } from 'node:timers/promises'

import { print, startWorker } from './bench.ts'
import type { Bench } from './bench.ts'
import { createLikes, likeSomething, likes, likesCounter, paceLikes, posts } from './load.ts'

const likesPerSecond = 1000

/** A counter on ten million likes that are there already, while more arrive; beside it the bare count and update, without either. */
export async function benchBackfill(bench: Bench): Promise<void> {
  const { pool, tally } = bench
  await createLikes(bench)
  const ratios: string[] = []
  print(`Backfill of ${likes.toLocaleString('en-US')} likes of ${posts.toLocaleString('en-US')} posts while ${likesPerSecond} likes/s arrive`)
  for (let repetition = 1; repetition <= bench.repetitions; repetition++) {
    const bare = await seconds(async () => {
      await pool.query('update big_posts set like_count = n from (select post_id, count(*) as n from big_likes group by 1) counts where id = post_id')
    })
    await pool.query('update big_posts set like_count = 0')
    await pool.query('vacuum big_posts')
    await pool.query('checkpoint')

    await using worker = await startWorker(bench)
    const stopping = new AbortController()
    const load = paceLikes(bench, likesPerSecond, likeSomething, stopping.signal)
    await sleep(500)
    let counted = 0
    const stored = await seconds(async () => {
      counted = await seconds(async () => {
        await tally.createCounter('backfilled', likesCounter)
      })
      // What the worker still has to add.
      while ((await corrections(bench)) > 0) await sleep(10)
    })
    const { driftingKeys } = await tally.counter('backfilled').audit()
    stopping.abort()
    await load
    if (worker.exitCode !== null) throw new Error('The worker ended before its time')
    await tally.drain()
    const { rows } = await pool.query('select count(*)::int as wrong from big_posts where like_count <> (select count(*) from big_likes where post_id = id)')
    const { wrong } = rows[0] as { wrong: number }
    if (driftingKeys + wrong > 0) throw new Error(`${driftingKeys} keys drifted, ${wrong} counts were wrong`)
    await tally.dropCounter('backfilled')
    await pool.query('update big_posts set like_count = 0')
    await pool.query('vacuum big_posts')
    ratios.push((stored / bare).toFixed(2))
    print(`  ${repetition}/${bench.repetitions} bare count and update ${bare.toFixed(2)} s; counted ${counted.toFixed(2)} s, all of it stored ${stored.toFixed(2)} s = ${ratios.at(-1)}; no drift, all counts right`)
  }
  print('')
}

/** How many keys have a correction of the backfill that is not stored yet. */
async function corrections({ pool }: Bench): Promise<number> {
  const { rows } = await pool.query(`select carried_keys::int as keys from pgtally.counter_status() where name = 'backfilled'`)
  return (rows[0] as { keys: number }).keys
}

async function seconds(work: () => Promise<void>): Promise<number> {
  const began = performance.now()
  await work()
  return (performance.now() - began) / 1000
}
