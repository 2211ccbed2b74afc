import { z } from 'zod'

import { PgtallyError } from '../errors.ts'
import type { Batch, QueueEvent, TransactionalBatch } from './batch.ts'

export type ConsumerMode = 'transactional' | 'at-least-once'

/** The batch as a consumer of that mode gets it. */
type BatchOf<D, M extends ConsumerMode> = M extends 'at-least-once' ? Batch<D> : TransactionalBatch<D>

interface ConsumerSettings<S extends z.ZodType, M extends ConsumerMode> {
  /** The queue to read: of a counter, whose name it has, or one made by `createQueue()`. */
  queue: string
  /** The consumer's name: whoever has the same shares its batches. It is given what commits from its first start on. */
  name: string
  /** What each event's `data` must be. An event of which it is not goes to the dead letters, with the reason. */
  schema?: S | undefined
  /**
   * - `transactional` (default): the handler gets the transaction that will also finish the batch: what it does there happens exactly once.
   * - `at-least-once`: the batch is finished after the handler. For effects elsewhere, which a crash may repeat: give them the event's or batch's `id`.
   */
  mode?: M | undefined
  /**
   * One batch after the other, whichever process takes it (default `true`). With `false` batches are handled side by side: one in each process, or
   * `concurrency`.
   */
  ordered?: boolean | undefined
  /** How many batches this process handles at a time, if they need not be in order. Default 1. */
  concurrency?: number | undefined
  /** A batch has no more events than this, but never less than one transaction's. Default 10 000. */
  maxEvents?: number | undefined
  /** Wait for so many events … Default 1. */
  minEvents?: number | undefined
  /** … but no longer than this after the first of them, in ms. Default 0. */
  maxWaitMs?: number | undefined
  /** A handler that takes longer has failed: its connection is closed, its batch is given again. In ms; default 60 000. */
  timeoutMs?: number | undefined
  /** How long after its process's death a batch is taken over by another, in ms. Default 10 000. */
  leaseMs?: number | undefined
  /** An event that was handled in vain so often becomes a dead letter. Default 10. */
  maxAttempts?: number | undefined
  /** Time between two looks while there is nothing to do, in ms. Default 100. */
  pollIntervalMs?: number | undefined
}

/** What a consumer does; see `tally.consumer()`. */
export type ConsumerDefinition<S extends z.ZodType = z.ZodUnknown, M extends ConsumerMode = ConsumerMode> = ConsumerSettings<S, M> &
  (
    | {
        /** Handles a batch. When it throws, nothing of it has happened (as far as that is in the batch's transaction), and the batch is given again, after a back-off. */
        handler: (batch: BatchOf<z.output<S>, M>) => Promise<void>
        each?: undefined
      }
    | {
        /** Handles one event after the other. When it throws, that event is tried again later (`batch.retry()`), and the others go on. */
        each: (event: QueueEvent<z.output<S>>, batch: BatchOf<z.output<S>, M>) => Promise<void>
        handler?: undefined
      }
  )

/** A consumer of whatever data and mode. */
export type AnyConsumerDefinition = ConsumerSettings<z.ZodType, ConsumerMode> & {
  handler?: ((batch: never) => Promise<void>) | undefined
  each?: ((event: never, batch: never) => Promise<void>) | undefined
}

const atLeastOne = (value: number) => z.int().min(1).default(value)
const name = z.string().min(1)
const work = z.custom<(...args: never[]) => Promise<void>>((value) => typeof value === 'function', 'it must be a function')

const definitionSchema = z
  .strictObject({
    queue: name,
    name: name.refine((text) => Buffer.byteLength(text) <= 200, 'it must not be longer than 200 bytes'),
    schema: z.custom<z.ZodType>((value) => value instanceof Object && 'safeParse' in value, 'it must be a zod schema').optional(),
    mode: z.enum(['transactional', 'at-least-once']).default('transactional'),
    ordered: z.boolean().default(true),
    concurrency: atLeastOne(1),
    maxEvents: atLeastOne(10_000),
    minEvents: atLeastOne(1),
    maxWaitMs: z.int().min(0).default(0),
    timeoutMs: atLeastOne(60_000),
    leaseMs: atLeastOne(10_000),
    maxAttempts: atLeastOne(10),
    pollIntervalMs: atLeastOne(100),
    handler: work.optional(),
    each: work.optional(),
  })
  .refine(({ handler, each }) => (handler === undefined) !== (each === undefined), 'it needs either `handler` or `each`')
  .refine(({ ordered, concurrency }) => !ordered || concurrency === 1, '`concurrency` needs `ordered: false`')
  .refine(({ minEvents, maxEvents }) => minEvents <= maxEvents, '`minEvents` cannot be more than `maxEvents`')

export type ParsedDefinition = z.output<typeof definitionSchema>

/** @throws PgtallyError INVALID_ARGUMENT */
export function parseDefinition(definition: object): ParsedDefinition {
  const parsed = definitionSchema.safeParse(definition)
  if (parsed.success) return parsed.data
  const called = 'name' in definition ? ` "${String(definition.name)}"` : ''
  throw new PgtallyError('INVALID_ARGUMENT', `Consumer${called}: ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
}

/**
 * A consumer in a module of its own, for `pgtally worker --module`; only gives it its types.
 *
 * @example
 * ```ts
 * export default [
 *   defineConsumer({
 *     queue: 'post_likes',
 *     name: 'notifier',
 *     schema: z.object({ user_id: z.number() }),
 *     handler: async (batch) => {
 *       for await (const { key, data } of batch) {
 *         await batch.client.query('insert into notifications (post_id, liked_by) values ($1, $2)', [key, data.user_id])
 *       }
 *     },
 *   }),
 * ]
 * ```
 */
export function defineConsumer<S extends z.ZodType = z.ZodUnknown, M extends ConsumerMode = 'transactional'>(definition: ConsumerDefinition<S, M>): ConsumerDefinition<S, M> {
  return definition
}
