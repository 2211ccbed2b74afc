import { connections } from '../clients.ts'
import { hotPost } from '../distributions.ts'
import { allMethods } from '../methods/all.ts'
import { tallyTrigger } from '../methods/tally.ts'
import { compareLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

/** Without and with a foreign key: with one, PostgreSQL itself locks the post's row for each like (FOR KEY SHARE). */
export const hot: Scenario = {
  name: 'hot',
  description: 'single likes of one hot post, without and with a foreign key',
  async run(bench) {
    const comparison = { methods: allMethods, distribution: hotPost, alsoConsuming: tallyTrigger }
    const title = `Likes per second, single statements on one hot post, ${connections} connections`
    return [
      await compareLikes(bench, { ...comparison, id: 'hot', title: `${title}, no foreign key`, foreignKey: false }),
      await compareLikes(bench, { ...comparison, id: 'hot-foreign-key', title: `${title}, with a foreign key`, foreignKey: true }),
    ]
  },
}
