import { connections } from '../clients.ts'
import { uniform, zipf } from '../distributions.ts'
import type { Distribution } from '../distributions.ts'
import { allMethods } from '../methods/all.ts'
import { compareLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

const spread = (name: string, distribution: Distribution): Scenario => ({
  name,
  description: `single likes of ${distribution.name}`,
  run: async (bench) => [
    await compareLikes(bench, {
      id: name,
      title: `Likes per second, single statements, ${distribution.name}, ${connections} connections, with a foreign key`,
      methods: allMethods,
      distribution,
      foreignKey: true,
    }),
  ],
})

export const zipfian = spread('zipf', zipf)
export const evenly = spread('uniform', uniform)
