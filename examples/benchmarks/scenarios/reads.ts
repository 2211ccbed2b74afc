import type pg from 'pg'

import { newUser, withClients } from '../clients.ts'
import type { Bench } from '../bench.ts'
import { openContest, settleAndVerify } from '../contest.ts'
import type { Contestant } from '../contest.ts'
import { hotPost } from '../distributions.ts'
import { slotted } from '../methods/slotted.ts'
import { tallyTrigger } from '../methods/tally.ts'
import type { Metric, Result } from '../results.ts'
import type { Scenario } from './scenario.ts'

const sizes = [1000, 100_000, 1_000_000]
const reads = 100
const likesPerStatement = 10_000

const metrics: Metric[] = [{ key: 'ms', title: 'ms', digits: 2, ratio: true }]

/** One count at a time, by primary key, of posts with few and many likes; nothing is written meanwhile. */
export const readCounts: Scenario = {
  name: 'reads',
  description: 'reading the count of one post with 1,000 to 1,000,000 likes: COUNT(*), stored, slotted, fresh',
  async run(bench) {
    const likes = sizes.map((size) => Math.max(size / bench.divisor, 10))
    await using contest = await openContest(bench, [tallyTrigger, slotted], { distribution: hotPost, foreignKey: false })
    for (const contestant of contest.contestants) {
      bench.progress(`reads: filling the tables of ${contestant.name}`)
      await fill(bench, contestant, likes)
    }
    const results: Result[] = []
    for (const [index, size] of likes.entries()) {
      results.push(await compareReads(bench, contest.contestants, index + 1, size))
    }
    return results
  },
}

async function fill(bench: Bench, contestant: Contestant, likes: readonly number[]): Promise<void> {
  await withClients(
    bench,
    async ([client]) => {
      for (const [index, size] of likes.entries()) {
        for (let left = size; left > 0; left -= likesPerStatement) {
          bench.signal.throwIfAborted()
          const some = Array.from({ length: Math.min(left, likesPerStatement) })
          if (client !== undefined) await contestant.likeMany?.(client, some.map(() => index + 1), some.map(newUser))
        }
      }
    },
    1,
  )
  await settleAndVerify(bench, contestant, likes.reduce((sum, size) => sum + size, 0))
  // So that COUNT(*) can read the index alone.
  await bench.pool.query(`vacuum analyze ${contestant.tables.likes}`)
}

async function compareReads(bench: Bench, [tallied, slots]: readonly Contestant[], post: number, likes: number): Promise<Result> {
  const counter = bench.tally.counter<number>(tallied?.tables.schema ?? '')
  const one = (text: string) => async (client: pg.Client) => (await client.query<{ n: string }>(text, [post])).rows[0]?.n
  const ways: [name: string, read: (client: pg.Client) => Promise<unknown>][] = [
    ['COUNT(*)', one(`select count(*) as n from ${tallied?.tables.likes} where post_id = $1`)],
    ['slotted counters', one(`select n from (${slots?.stored}) s where post_id = $1`)],
    ['pgtally, the stored column', one(`select n from (${tallied?.stored}) s where post_id = $1`)],
    ['pgtally, get() with fresh', async (client) => (await counter.get(post, { fresh: true, executor: client })).count],
  ]
  const rows = ways.map(([name]) => ({ name, samples: { ms: [] as number[] } }))
  await withClients(
    bench,
    async ([client]) => {
      if (client === undefined) return
      for (let read = 0; read < reads; read++) {
        for (const [index, [name, way]] of ways.entries()) {
          const began = performance.now()
          const count = await way(client)
          rows[index]?.samples.ms.push(performance.now() - began)
          if (Number(count) !== likes) throw new Error(`${name} gives ${count}, not ${likes}`)
        }
      }
    },
    1,
  )
  bench.progress(`reads: ${likes.toLocaleString('en-US')} likes: done`)
  return { id: `reads-${likes}`, title: `Time to read the count of one post with ${likes.toLocaleString('en-US')} likes, ${reads} reads each`, metrics, rows }
}
