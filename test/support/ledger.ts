import { setTimeout as sleep } from 'node:timers/promises'

import { defineConsumer } from '../../src/index.ts'

/** For `pgtally worker --module`: writes each event down in the batch's transaction, slowly enough to be killed in the middle of it. */
export default [
  defineConsumer({
    queue: 'post_likes',
    name: 'ledger',
    ordered: false,
    maxEvents: 50,
    leaseMs: 200,
    pollIntervalMs: 5,
    handler: async (batch) => {
      for await (const { id, key, delta } of batch) await batch.client.query('insert into ledger values ($1, $2, $3)', [id, key, delta])
      await sleep(Math.random() * 20)
    },
  }),
]
