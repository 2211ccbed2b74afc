import { connections, sendingBy } from '../clients.ts'
import { hotPost } from '../distributions.ts'
import { bare } from '../methods/bare.ts'
import type { Method } from '../methods/method.ts'
import { noopTrigger } from '../methods/noop-trigger.ts'
import { tallyStatement, tallyTrigger } from '../methods/tally.ts'
import { compareLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

/** Without a name, pg has each statement parsed and planned anew, which takes the longer the more there is in it. */
export const prepared: Scenario = {
  name: 'prepared',
  description: 'single likes of one hot post as prepared statements',
  run: async (bench) => [
    await compareLikes(bench, {
      id: 'prepared',
      title: `Likes per second, single prepared statements, ${hotPost.name}, ${connections} connections, no foreign key`,
      methods: [bare, noopTrigger, tallyTrigger, tallyStatement].map(prepareLikes),
      distribution: hotPost,
      foreignKey: false,
    }),
  ],
}

const prepareLikes = (method: Method): Method => ({
  ...method,
  async open(bench, tables) {
    const opened = await method.open(bench, tables)
    return {
      ...opened,
      // One name will do, as each of them likes by one statement; pg would refuse another under that name.
      like: (client, post, user) => opened.like(sendingBy((text, values) => client.query({ name: 'like', text, values })), post, user),
    }
  },
})
