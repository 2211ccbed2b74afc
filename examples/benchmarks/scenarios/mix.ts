import type pg from 'pg'

import { connections, newUser } from '../clients.ts'
import type { Contestant } from '../contest.ts'
import { zipf } from '../distributions.ts'
import type { Distribution } from '../distributions.ts'
import { allMethods } from '../methods/all.ts'
import { compareLikes } from './compare-likes.ts'
import type { Acts } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

const unlikes = 0.3

/** Three likes of ten are taken back again. */
export const mix: Scenario = {
  name: 'mix',
  description: `likes and unlikes, ${zipf.name}`,
  run: async (bench) => [
    await compareLikes(bench, {
      id: 'mix',
      title: `Likes and unlikes (${unlikes * 100} %) per second, single statements, ${zipf.name}, ${connections} connections, with a foreign key`,
      methods: allMethods,
      distribution: zipf,
      foreignKey: true,
      acts: mixedLikes,
    }),
  ],
}

/** A connection takes back what it gave itself. */
function mixedLikes({ like, unlike }: Contestant, distribution: Distribution): Acts {
  const given = new Map<pg.Client, [post: number, user: number][]>()
  let rows = 0
  return {
    rows: () => rows,
    async act(client) {
      const own = given.get(client) ?? []
      given.set(client, own)
      const [post, user] = (Math.random() < unlikes ? own.pop() : undefined) ?? []
      if (post !== undefined && user !== undefined) {
        await unlike(client, post, user)
        rows--
      } else {
        const pair: [number, number] = [distribution.next(), newUser()]
        await like(client, ...pair)
        own.push(pair)
        rows++
      }
      return 1
    },
  }
}
