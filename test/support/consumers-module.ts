import type { WorkerModule, WorkerModuleContext } from '../../src/index.ts'
import { defineConsumer } from '../../src/index.ts'

/** For `pgtally worker --module`: a consumer that works, one whose queue is not there, and somebody who is told what changes. */
export default ({ logger }: WorkerModuleContext): WorkerModule => ({
  onApplied: ({ counter, changes }) => logger.info({ counter, changes }, 'applied'),
  consumers: [
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
  ],
})
