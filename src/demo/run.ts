import type { Pool } from 'pg'

import { celebrity, countLikes, createTables, likesBefore } from './playground.ts'
import type { Playground } from './playground.ts'
import { quantile, runStorm } from './storm.ts'
import type { StormProgress } from './storm.ts'
import { demoWays } from './ways.ts'
import type { Way } from './ways.ts'

export interface DemoOptions {
  playground: Playground
  pools: {
    /** To set up, and for pgtally. */
    control: Pool
    writers: Pool
    reader: Pool
  }
  connections: number
  seconds: number
  signal: AbortSignal
}

/** Who shows the demo as it goes. */
export interface DemoView {
  prepares(way: Way): void
  progress(way: Way, progress: StormProgress): void
  ends(way: Way, result: WayResult): void
}

export interface WayResult {
  way: Way['id']
  name: string
  /** Likes and unlikes, as all that is named likes here. */
  likesPerSecond: number
  likes: number
  unlikes: number
  read: { reads: number; medianMs: number; p99Ms: number }
  behind: { samples: number; medianLikes: number; maxLikes: number; medianMs: number; maxMs: number }
  /** From the last like's end until all was in the stored count. */
  catchUpMs: number
  count: {
    /** What a read gives in the end. */
    read: number
    /** The rows, counted. */
    rows: number
    /** What the clients know: the likes before, plus likes, minus unlikes that the server acknowledged. */
    acknowledged: number
  }
  exact: boolean
}

/** Runs the three ways one after the other. */
export async function runDemo(options: DemoOptions, view: DemoView): Promise<WayResult[]> {
  const results: WayResult[] = []
  for (const way of demoWays(options.playground)) {
    view.prepares(way)
    await createTables(options.pools.control, options.playground)
    options.signal.throwIfAborted()
    const result = await runWay(way, options, view)
    view.ends(way, result)
    results.push(result)
  }
  return results
}

async function runWay(way: Way, { playground, pools, connections, seconds, signal }: DemoOptions, view: DemoView): Promise<WayResult> {
  const openWay = await way.open(pools.control)
  try {
    signal.throwIfAborted()
    const onProgress = (progress: StormProgress) => view.progress(way, progress)
    const storm = await runStorm({ way, openWay, writers: pools.writers, reader: pools.reader, connections, seconds, signal, onProgress })
    const endedAt = performance.now()
    await openWay.settle()
    const catchUpMs = performance.now() - endedAt

    const { rows } = await pools.reader.query<{ count: string }>(way.read, [celebrity])
    const count = {
      read: Number(rows[0]?.count),
      rows: await countLikes(pools.control, playground),
      acknowledged: likesBefore + storm.likes - storm.unlikes,
    }
    return {
      way: way.id,
      name: way.name,
      likesPerSecond: storm.perSecond,
      likes: storm.likes,
      unlikes: storm.unlikes,
      read: { reads: storm.readMs.length, medianMs: quantile(storm.readMs, 0.5), p99Ms: quantile(storm.readMs, 0.99) },
      behind: {
        samples: storm.behindMs.length,
        medianLikes: quantile(storm.behindLikes, 0.5),
        maxLikes: quantile(storm.behindLikes, 1),
        medianMs: quantile(storm.behindMs, 0.5),
        maxMs: quantile(storm.behindMs, 1),
      },
      catchUpMs,
      count,
      exact: count.read === count.rows && count.rows === count.acknowledged,
    }
  } finally {
    await openWay.close()
  }
}
