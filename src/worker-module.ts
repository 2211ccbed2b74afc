import type { Pool } from 'pg'

import type { AnyConsumerDefinition } from './queue/definition.ts'
import type { Tally } from './tally.ts'
import type { Logger } from './logger.ts'
import type { WorkerOptions } from './worker/worker.ts'

/** What a module for `pgtally worker --module` may have as its default export, or a function that returns it (or a promise of it); an array is short for its consumers. */
export interface WorkerModule {
  consumers?: readonly AnyConsumerDefinition[]
  onApplied?: WorkerOptions['onApplied']
}

/** What that function is given. */
export interface WorkerModuleContext {
  tally: Tally
  pool: Pool
  logger: Logger
}
