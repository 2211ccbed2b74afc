import type { z } from 'zod'

import type { Counter } from '../counters/counter.ts'
import type { Key } from '../counters/definition.ts'
import { PgtallyError } from '../errors.ts'
import type { HandledBatch } from './batch.ts'
import type { ConsumerDefinition } from './definition.ts'

type Definition = ConsumerDefinition<z.ZodUnknown, 'at-least-once'>

/** What is forwarded, and where to; see `tally.forward()`. Its options are those of a consumer. */
export interface ForwardDefinition extends Pick<Definition, 'queue' | 'name' | 'minEvents' | 'maxWaitMs' | 'timeoutMs' | 'leaseMs' | 'pollIntervalMs'> {
  /** A counter without a source, in another database: `createTally({ pool: otherPool }).counter('all_likes')`. */
  to: Counter<Key>
  /** A batch has no more events than this, but never less than one transaction's. Default 200 000: the more are summed, the less there is to add. */
  maxEvents?: Definition['maxEvents']
}

/**
 * A consumer that forwards its queue to a counter in another database, for `tally.consumer()` or a module of `pgtally worker --module`. See `tally.forward()`.
 *
 * @throws PgtallyError INVALID_ARGUMENT
 *
 * @example
 * ```ts
 * export default [defineForward({ queue: 'post_likes', name: 'to total', to: total.counter('all_likes') })]
 * ```
 */
export function defineForward({ to, maxEvents = 200_000, timeoutMs = 60_000, ...settings }: ForwardDefinition): Definition {
  if (typeof to?.receive !== 'function') {
    throw new PgtallyError('INVALID_ARGUMENT', `Forward "${settings.name}": \`to\` must be a counter in another database: createTally({ pool: otherPool }).counter('name').`)
  }
  return {
    ...settings,
    maxEvents,
    timeoutMs,
    mode: 'at-least-once',
    handler: async (batch) => {
      await to.receive(await (batch as HandledBatch).export(), { timeoutMs, signal: batch.signal })
    },
  }
}
