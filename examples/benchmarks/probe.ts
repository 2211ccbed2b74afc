import { setTimeout as sleep } from 'node:timers/promises'

import type { Bench } from './bench.ts'
import { newUser, withClients } from './clients.ts'
import { postOfItsOwn } from './contest.ts'
import type { Contestant } from './contest.ts'
import type { Distribution } from './distributions.ts'

export interface Lag {
  /** Seconds since the probing began, when the like was committed. */
  at: number
  ms: number
}

export interface Probing {
  /** In the order in which they were liked. */
  lags: Lag[]
  likes: number
}

const longestPauseMs = 50
const patienceMs = 300_000

/** Likes a post that nobody else likes, looks until its count includes that, and again; until `stopping` is aborted, and the last one is counted. */
export async function probeLag(bench: Bench, { name, like, stored }: Contestant, distribution: Distribution, stopping: AbortSignal): Promise<Probing> {
  const post = postOfItsOwn(distribution)
  return withClients(
    bench,
    async ([client]) => {
      const lags: Lag[] = []
      let likes = 0
      if (client === undefined) return { lags, likes }
      const began = performance.now()
      while (!stopping.aborted) {
        await like(client, post, newUser())
        likes++
        const committed = performance.now()
        for (let count = 0; count < likes; ) {
          bench.signal.throwIfAborted()
          const { rows } = await client.query<{ n: number }>(`select n::int as n from (${stored}) s where post_id = $1`, [post])
          count = rows[0]?.n ?? 0
          if (performance.now() - committed > patienceMs) throw new Error(`${name}: a like was not counted within ${patienceMs / 1000} s`)
          if (count < likes) await sleep(1)
        }
        lags.push({ at: (committed - began) / 1000, ms: performance.now() - committed })
        // So that it does not fall into step with a worker.
        await sleep(Math.random() * longestPauseMs)
      }
      return { lags, likes }
    },
    1,
  )
}
