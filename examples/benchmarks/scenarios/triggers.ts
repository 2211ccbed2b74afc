import { connections } from '../clients.ts'
import { hotPost } from '../distributions.ts'
import { bare } from '../methods/bare.ts'
import { noopTrigger } from '../methods/noop-trigger.ts'
import { tallyTrigger } from '../methods/tally.ts'
import { triggerForms } from '../methods/trigger-forms.ts'
import { compareLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

/** What decided how the trigger is written. */
export const triggers: Scenario = {
  name: 'triggers',
  description: 'single likes of one hot post through differently written triggers',
  run: async (bench) => [
    await compareLikes(bench, {
      id: 'triggers',
      title: `Likes per second through differently written triggers, ${hotPost.name}, ${connections} connections, no foreign key`,
      methods: [bare, noopTrigger, ...triggerForms, tallyTrigger],
      distribution: hotPost,
      foreignKey: false,
    }),
  ],
}
