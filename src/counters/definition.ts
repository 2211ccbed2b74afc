import { z } from 'zod'

import { PgtallyError } from '../errors.ts'

export const keyTypes = ['smallint', 'integer', 'bigint', 'uuid', 'text'] as const

/** The type of a queue's keys. `varchar` columns count as `text`. */
export type KeyType = (typeof keyTypes)[number]

const name = z.string().min(1)

const definitionSchema = z.strictObject({
  source: z.strictObject({ table: name, key: name, where: name.optional(), sum: name.optional(), data: z.array(name).min(1).readonly().optional(), time: name.optional() }).optional(),
  target: z.strictObject({ table: name, key: name, column: name }).optional(),
  onMissing: z.enum(['drop', 'insert', 'error']).optional(),
  keyType: z.enum(keyTypes).optional(),
  queue: name.optional(),
  rotationPeriodMs: z.int().min(1000).optional(),
  retainMs: z.int().min(0).optional(),
  // In which order, and how many, the database checks.
  milestones: z.union([z.literal('powers of ten'), z.array(z.int().min(1)).readonly()]).optional(),
  // As are intervals, which are the server's own.
  buckets: z.array(z.strictObject({ width: name, retain: name, timeZone: name.optional() })).min(1).readonly().optional(),
  ranking: z.boolean().optional(),
  trending: z.array(z.strictObject({ halfLife: name })).min(1).readonly().optional(),
})

/** From 10 to 10^18, beyond which a bigint holds no other. */
const powersOfTen = Array.from({ length: 18 }, (_, index) => 10n ** BigInt(index + 1))

/** What a counter counts, and where the count is stored. Table names may be qualified: `app.likes`. */
export interface CounterDefinition {
  /**
   * The table whose rows are counted. Without one, events come from `counter.add()`.
   * - `key`: the column that says for what each row counts.
   * - `where`: SQL condition on a row's columns; only rows for which it is true count.
   * - `sum`: SQL expression for a whole number to add up, instead of counting 1 for each row.
   * - `data`: columns that consumers of the queue get with each event, such as `['user_id']`. Each row is an event of its own then; otherwise those of a statement
   *   are summed by key, which is faster.
   * - `time`: the column that says when what a row stands for happened, such as `created_at`, for `buckets` and `trending`: a `timestamptz`, or a `timestamp`, which is taken as UTC.
   *   What is deleted is then taken back from where it was counted. Without it that is when its event was written, also for one that takes back.
   */
  source?: { table: string; key: string; where?: string | undefined; sum?: string | undefined; data?: readonly string[] | undefined; time?: string | undefined } | undefined
  /** The column that the count is stored in. Without one, counts are kept in a table of pgtally's own. */
  target?: { table: string; key: string; column: string } | undefined
  /**
   * What happens to a key that has no row in the target: `drop` its events (they are counted as dropped), `insert` a row, or
   * stop with an `error`. Default: `drop` for a table of yours (the row was deleted), `insert` for pgtally's own.
   */
  onMissing?: 'drop' | 'insert' | 'error' | undefined
  /** The type of the keys, where neither source nor target tells. Default: `bigint`. */
  keyType?: KeyType | undefined
  /** Follow the queue of this other counter, at a pace of its own, instead of having a source. */
  queue?: string | undefined
  /** How long writers stay in one of the queue's three slots, in ms. Events take up space for two to three times that. Default: 300 000, or `retainMs` if that is more. */
  rotationPeriodMs?: number | undefined
  /** How long events are kept at least after they were applied, in ms, for consumers that want to read again. At most `rotationPeriodMs`. Default: 0. */
  retainMs?: number | undefined
  /**
   * Thresholds in ascending order, 1 to 100 of them, or all powers of ten from 10 on. When the stored count of a key reaches one for the first time, that is recorded
   * (`counter.milestones()`) and handed on as an event of the queue `NAME.milestones`, with the data `{ threshold, value }`, in the same transaction. What rows
   * that existed before the counter have reached is recorded only.
   */
  milestones?: readonly number[] | 'powers of ten' | undefined
  /** Counts by key and time, for `counter.series()`, `counter.top()` of a window and `counter.trending()` against a baseline. They are added to in the transaction that adds to the counts. */
  buckets?: readonly BucketDefinition[] | undefined
  /** Keeps what `counter.top()` of all time reads. Default: false. */
  ranking?: boolean | undefined
  /** Keeps a score of each key for `counter.trending()`, in which an event weighs half after each `halfLife`: an interval of a minute or more, such as `6 hours`. */
  trending?: readonly { halfLife: string }[] | undefined
}

/** Counts by key and time, kept for a while: of how long a time each is, and for how long they are kept. Intervals are in PostgreSQL's words. */
export interface BucketDefinition {
  /** What divides a day, such as `1 minute`, `15 minutes` or `1 hour`; or `1 day`, `1 week` (from Monday on), `1 month` or `1 year`. */
  width: string
  /** Such as `30 days`, not shorter than `width`; or `forever`. What is older goes by whole partitions. */
  retain: string
  /** Where days begin, such as `Europe/Berlin`, for widths of a day and more. Default: `UTC`. */
  timeZone?: string | undefined
}

/** The arguments of the SQL function create_counter(), by name. */
export type CreateCounterArguments = Record<string, string | readonly string[] | undefined>

/** @throws PgtallyError INVALID_DEFINITION */
export function createCounterArguments(counterName: string, definition: CounterDefinition): CreateCounterArguments {
  const parsed = definitionSchema.safeParse(definition)
  if (!parsed.success) {
    throw new PgtallyError('INVALID_DEFINITION', `Counter "${counterName}": ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
  }
  const { source, target, onMissing, keyType, queue, rotationPeriodMs, retainMs, milestones, buckets, ranking, trending } = parsed.data
  return {
    counter_name: counterName,
    source: source?.table,
    source_key: source?.key,
    where_condition: source?.where,
    sum_expression: source?.sum,
    source_data: source?.data,
    source_time: source?.time,
    target: target?.table,
    target_key: target?.key,
    target_column: target?.column,
    on_missing: onMissing,
    key_type: keyType,
    queue,
    rotation_period: interval(rotationPeriodMs),
    retain: interval(retainMs),
    milestones: (milestones === 'powers of ten' ? powersOfTen : milestones)?.map(String),
    buckets: buckets && JSON.stringify(buckets.map(({ width, retain, timeZone }) => ({ width, retain, time_zone: timeZone }))),
    ranking: ranking === undefined ? undefined : String(ranking),
    half_lives: trending?.map(({ halfLife }) => halfLife),
  }
}

function interval(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : `${ms} milliseconds`
}

/** A value that can be a key: `bigint` columns take all three, `uuid` and `text` strings. */
export type Key = string | number | bigint

type SelectType<C> = C extends { readonly __select__: infer S } ? S : C
type InsertType<C> = C extends { readonly __insert__: infer I } ? I : C
type UpdateType<C> = C extends { readonly __update__: infer U } ? U : C

/** Columns that a number may be written to, whatever type a driver reads them as. */
type NumberColumn<T> = { [C in keyof T & string]: [Extract<UpdateType<T[C]>, number | bigint>] extends [never] ? never : C }[keyof T & string]
type KeyColumn<T> = { [C in keyof T & string]: [Extract<SelectType<T[C]>, Key>] extends [never] ? never : C }[keyof T & string]

/** Columns that a time may be read from, whatever type a driver reads it as: no numbers and no booleans. */
type TimeColumn<T> = { [C in keyof T & string]: [Extract<SelectType<T[C]>, string | object>] extends [never] ? never : C }[keyof T & string]

type TypedSource<DB> = {
  [T in keyof DB & string]: { table: T; key: KeyColumn<DB[T]>; where?: string; sum?: string; data?: readonly (keyof DB[T] & string)[]; time?: TimeColumn<DB[T]> }
}[keyof DB & string]
type TypedTarget<DB> = {
  [T in keyof DB & string]: { table: T; key: KeyColumn<DB[T]>; column: NumberColumn<DB[T]> }
}[keyof DB & string]

/** A `CounterDefinition` whose tables and columns are those of a Kysely `DB` type. */
export type TypedCounterDefinition<DB> = Omit<CounterDefinition, 'source' | 'target'> & {
  source?: TypedSource<DB>
  target?: TypedTarget<DB>
}

type CounterDefinitions = Readonly<Record<string, CounterDefinition>>

/** Carries, for the types only, which values are keys of a counter. */
export interface DefinedCounters<Keys extends Record<string, Key>> {
  readonly definitions: CounterDefinitions
  readonly __keys__?: Keys
}

type ColumnKey<DB, R> = R extends { table: infer T; key: infer C }
  ? T extends keyof DB
    ? C extends keyof DB[T]
      ? Extract<SelectType<DB[T][C]> | InsertType<DB[T][C]>, Key>
      : Key
    : Key
  : Key

type KeyOf<DB, D> = D extends { source: infer S }
  ? ColumnKey<DB, S>
  : D extends { target: infer T }
    ? ColumnKey<DB, T>
    : D extends { keyType: 'uuid' | 'text' }
      ? string
      : Key

/**
 * Defines counters whose table, key and column names are checked against a Kysely `DB` type; a target column that is no
 * number is a type error. Without the type argument any names are accepted, and the database checks them.
 *
 * @example
 * ```ts
 * interface DB {
 *   posts: { id: number; like_count: number }
 *   likes: { post_id: number; user_id: number }
 * }
 * const counters = defineCounters<DB>()({
 *   post_likes: {
 *     source: { table: 'likes', key: 'post_id' },
 *     target: { table: 'posts', key: 'id', column: 'like_count' },
 *   },
 *   page_views: { keyType: 'text' },
 * })
 * const tally = createTally({ pool, counters })
 * ```
 */
export function defineCounters<DB = Record<string, Record<string, Key>>>() {
  return <const D extends Record<string, TypedCounterDefinition<DB>>>(
    definitions: D,
  ): DefinedCounters<{ [N in keyof D & string]: KeyOf<DB, D[N]> }> => ({ definitions: definitions as CounterDefinitions })
}
