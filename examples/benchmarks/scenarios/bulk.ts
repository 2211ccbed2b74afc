import { connections, newUser } from '../clients.ts'
import type { Contestant } from '../contest.ts'
import { zipf } from '../distributions.ts'
import type { Distribution } from '../distributions.ts'
import { allMethods } from '../methods/all.ts'
import { graphileWorker } from '../methods/graphile-worker.ts'
import { pgBossSend } from '../methods/pg-boss.ts'
import { updateInTransaction } from '../methods/synchronous.ts'
import { compareLikes } from './compare-likes.ts'
import type { Acts } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

const manyLikes = 1000

/** Many likes in one statement, as an import or a coalescing application sends them. */
export const bulk: Scenario = {
  name: 'bulk',
  description: `${manyLikes.toLocaleString('en-US')} likes in each statement, ${zipf.name}`,
  async run(bench) {
    const likes = Math.max(manyLikes / bench.divisor, 100)
    const result = await compareLikes(bench, {
      id: 'bulk',
      title: `Likes per second, ${likes.toLocaleString('en-US')} in each statement, ${zipf.name}, ${connections} connections, with a foreign key`,
      // Those in the same transaction send like by like; graphile-worker would take minutes for the jobs that come in within a second.
      methods: allMethods.filter((method) => method !== updateInTransaction && method !== pgBossSend && method !== graphileWorker),
      distribution: zipf,
      foreignKey: true,
      acts: bulkLikes(likes),
    })
    return [result]
  },
}

const bulkLikes = (likesPerStatement: number) => ({ likeMany }: Contestant, distribution: Distribution): Acts => {
  return {
    async act(client) {
      const likes = Array.from({ length: likesPerStatement })
      await likeMany?.(client, likes.map(() => distribution.next()), likes.map(newUser))
      return likesPerStatement
    },
  }
}
