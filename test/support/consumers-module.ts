import type { ConsumerModuleContext } from '../../src/index.ts'
import { defineConsumer } from '../../src/index.ts'

/** For `pgtally worker --module`: one that works, and one whose queue is not there. */
export default ({ logger }: ConsumerModuleContext) => [
  defineConsumer({
    queue: 'events',
    name: 'teller',
    mode: 'at-least-once',
    pollIntervalMs: 5,
    handler: async (batch) => {
      for await (const { key } of batch) logger.info({ key }, 'told')
    },
  }),
  defineConsumer({ queue: 'nowhere', name: 'lost', handler: async () => {} }),
]
