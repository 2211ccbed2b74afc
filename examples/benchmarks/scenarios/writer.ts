import pg from 'pg'

import { atFullSpeed, connections, newUser } from '../clients.ts'
import type { Bench } from '../bench.ts'
import { inTurn, openContest, reset, settleAndVerify, warmUp } from '../contest.ts'
import type { Contestant } from '../contest.ts'
import { hotPost, uniform } from '../distributions.ts'
import type { Distribution } from '../distributions.ts'
import { bare } from '../methods/bare.ts'
import { tallyTrigger } from '../methods/tally.ts'
import { createTally } from '../../../src/index.ts'
import type { Metric, Result } from '../results.ts'
import { singleLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

const metrics: Metric[] = [{ key: 'rate', title: 'likes/s', ratio: true }]

/** One Node.js process that waits for each like until it is durable: one statement each, or coalesced by `tally.writer()`, which needs many calls in flight. */
export const writer: Scenario = {
  name: 'writer',
  description: 'likes from one process, one by one and coalesced by tally.writer(), hot and spread',
  run: async (bench) => [await compareWriters(bench, 'writer-hot', hotPost), await compareWriters(bench, 'writer-spread', uniform)],
}

async function compareWriters(bench: Bench, id: string, distribution: Distribution): Promise<Result> {
  await using contest = await openContest(bench, [tallyTrigger, bare], { distribution, foreignKey: false })
  await warmUp(bench, contest, distribution)
  const contestants = contest.contestants.flatMap((contestant) => [
    { ...contestant, name: `${contestant.name}, one by one on ${connections} connections`, inFlight: 0 },
    ...[512, 4096].map((inFlight) => ({
      ...contestant,
      name: `${contestant.name === bare.name ? 'tally.writer() without a counter' : 'pgtally, tally.writer()'}, ${inFlight.toLocaleString('en-US')} in flight`,
      inFlight,
    })),
  ])
  const { rows, failed } = await inTurn(bench, id, contestants, metrics, async (contestant) => {
    await reset(bench, contestant)
    const { done, seconds } =
      contestant.inFlight === 0 ? await atFullSpeed(bench, singleLikes(contestant, distribution).act) : await throughWriter(bench, contestant, distribution, contestant.inFlight)
    await settleAndVerify(bench, contestant, done)
    return { rate: done / seconds }
  })
  return { id, title: `Likes per second from one Node.js process, each awaited until it is durable, ${distribution.name}, no foreign key`, metrics, rows, failed, bars: true }
}

/** So many callers, each of which likes again as soon as its last like is durable. With the writer's defaults. */
async function throughWriter({ connectionString, seconds, signal }: Bench, { tables }: Contestant, distribution: Distribution, inFlight: number) {
  const pool = new pg.Pool({ connectionString, max: connections })
  pool.on('error', () => {})
  try {
    await using likes = createTally({ pool }).writer<number, number>({ table: tables.likes, key: 'post_id', member: 'user_id', signal })
    const began = performance.now()
    const end = began + seconds * 1000
    let done = 0
    const caller = async () => {
      while (performance.now() < end) if (await likes.add(distribution.next(), newUser())) done++
    }
    await Promise.all(Array.from({ length: inFlight }, caller))
    return { done, seconds: (performance.now() - began) / 1000 }
  } finally {
    await pool.end()
  }
}
