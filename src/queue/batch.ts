import type { PoolClient } from 'pg'
import type { z } from 'zod'

import { PgtallyError } from '../errors.ts'
import { query } from '../executor.ts'
import type { Executor } from '../executor.ts'
import type { RawEvent } from './read-events.ts'

/** One event of a queue. */
export interface QueueEvent<D = unknown> {
  /** The event's identity: the same whenever it is given again, and no other event of this database's cluster has it. */
  readonly id: string
  /** When it was written, by the server's clock. */
  readonly time: Date
  /** The key, as text. */
  readonly key: string
  /** What is added to the key's count; negative for an unlike. */
  readonly delta: number
  /** What the event brings along; null where it brings nothing. */
  readonly data: D
  /** 1, and one more each time after `batch.retry()`. */
  readonly attempt: number
}

export interface RetryOptions {
  /** When it is given again. Default: a second, doubled with each attempt, up to an hour; give or take a fifth. */
  delayMs?: number | undefined
  /** Kept with it, for whoever looks. */
  reason?: string | undefined
}

export interface KeyDelta {
  key: string
  delta: number
  events: number
}

/** The events that a consumer is given together. It is finished when the handler is through. Read it with `for await (const event of batch)`. */
export interface Batch<D = unknown> extends AsyncIterable<QueueEvent<D>> {
  /** The same when it is given again. */
  readonly id: string
  /** How often it has been given, this time included. */
  readonly attempt: number
  /** Aborted when the batch is lost: the handler takes too long, another process has taken it over. What is done after that is not finished by anyone. */
  readonly signal: AbortSignal
  /** The events in pages of some thousands, so that however many there are need not fit in memory. In the order of their transactions' ids. */
  pages(): AsyncGenerator<readonly QueueEvent<D>[], void, undefined>
  /**
   * The events summed by key, by the server.
   *
   * @throws PgtallyError UNSAFE_COUNT (a sum beyond 2^53 - 1)
   */
  deltas(): Promise<KeyDelta[]>
  /** Finishes the batch without this event: it is given again later, by itself; nothing waits for it. After `maxAttempts` it becomes a dead letter. */
  retry(event: QueueEvent<D>, options?: RetryOptions): void
  /** Finishes the batch without this event: it is kept as a dead letter, with the reason. */
  reject(event: QueueEvent<D>, reason: string): void
}

export interface TransactionalBatch<D = unknown> extends Batch<D> {
  /** The connection in whose transaction the batch is finished. It must neither be committed nor rolled back, nor used after the handler is through. */
  readonly client: PoolClient
}

interface Failure {
  raw: RawEvent
  attempts: number
  reason: string
  /** Null: a dead letter. */
  retryInMs: number | null
}

const longestDelayMs = 3_600_000

function defaultDelayMs(attempt: number): number {
  return Math.min(1000 * 2 ** (attempt - 1), longestDelayMs) * (0.8 + 0.4 * Math.random())
}

/** What `export_batch()` gives, for `receive_batch()`; all as the server wrote it, so nothing here needs to be understood or can be rounded. */
export interface ExportedBatch {
  /** JSON: whose it is, and which. */
  batch: string
  /** PostgreSQL arrays. */
  keys: string
  deltas: string
}

interface BatchOptions {
  id: string
  token: string
  attempt: number
  /** The transaction that finishes the batch, where it is the handler's as well. */
  client?: PoolClient | undefined
  signal: AbortSignal
  schema: z.ZodType | undefined
  maxAttempts: number
  read(): AsyncIterable<readonly RawEvent[]>
  deltas(): Promise<KeyDelta[]>
  export(): Promise<ExportedBatch>
}

/** A batch at work in a handler. */
export class HandledBatch implements TransactionalBatch {
  readonly id: string
  /** Tells it from every other one: no other database gives it out, nor this one once more after it was restored from a backup. */
  readonly token: string
  readonly attempt: number
  readonly signal: AbortSignal
  readonly #options: BatchOptions
  readonly #given = new WeakMap<object, RawEvent>()
  /** By the event's id: a handler may read the batch twice. */
  readonly #failures = new Map<string, Failure>()
  #over = false

  constructor(options: BatchOptions) {
    this.id = options.id
    this.token = options.token
    this.attempt = options.attempt
    this.signal = options.signal
    this.#options = options
  }

  get client(): PoolClient {
    const { client } = this.#options
    if (client === undefined) throw new PgtallyError('INVALID_ARGUMENT', "A batch has a transaction only with `mode: 'transactional'`.")
    return client
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<QueueEvent, void, undefined> {
    for await (const page of this.pages()) yield* page
  }

  async *pages(): AsyncGenerator<readonly QueueEvent[], void, undefined> {
    for await (const page of this.rawPages()) {
      const events = page.flatMap((raw) => this.#event(raw) ?? [])
      if (events.length > 0) yield events
    }
  }

  /** For what pgtally brings along itself: exact to the last digit, and of any size. */
  async *rawPages(): AsyncGenerator<readonly RawEvent[], void, undefined> {
    for await (const page of this.#options.read()) {
      this.signal.throwIfAborted()
      if (page.length > 0) yield page
    }
  }

  deltas(): Promise<KeyDelta[]> {
    return this.#options.deltas()
  }

  export(): Promise<ExportedBatch> {
    return this.#options.export()
  }

  retry(event: QueueEvent, { delayMs = defaultDelayMs(event.attempt), reason = 'the handler asked for it to be given again' }: RetryOptions = {}): void {
    this.#fail(event, { attempts: event.attempt, reason, retryInMs: event.attempt < this.#options.maxAttempts ? delayMs : null })
  }

  reject(event: QueueEvent, reason: string): void {
    this.#fail(event, { attempts: event.attempt, reason, retryInMs: null })
  }

  /** No more of `retry()` and `reject()`. Keeps what was left aside, in the transaction that finishes the batch. */
  async settle(executor: Executor, schema: string, queue: string, consumer: string): Promise<void> {
    this.#over = true
    const failures = [...this.#failures.values()]
    if (failures.length === 0) return
    const columns = (index: number) => failures.map(({ raw }) => raw[index])
    await query(
      executor,
      `select from (
         select ${schema}.fail_event($1::text, $2::text, u.id, timestamptz 'epoch' + u.time * interval '1 microsecond', u.key, u.delta, u.data::jsonb,
           u.attempts, u.reason, u.retry_in * interval '1 millisecond')
         from unnest($3::text[], $4::int8[], $5::text[], $6::int8[], $7::text[], $8::int4[], $9::text[], $10::float8[])
           u(id, time, key, delta, data, attempts, reason, retry_in)
         offset 0) kept`,
      [queue, consumer, ...[0, 1, 2, 3, 4].map(columns), failures.map(({ attempts }) => attempts), failures.map(({ reason }) => reason), failures.map(({ retryInMs }) => retryInMs)],
    )
  }

  #fail(event: QueueEvent, failure: Omit<Failure, 'raw'>): void {
    const raw = this.#given.get(event)
    if (raw === undefined || this.#over) {
      throw new PgtallyError('INVALID_ARGUMENT', this.#over ? `Batch ${this.id} is over: retry() and reject() are for the handler, before it is through.` : `The event is not one that batch ${this.id} has given.`)
    }
    if (failure.retryInMs !== null && !(failure.retryInMs >= 0)) throw new PgtallyError('INVALID_ARGUMENT', `delayMs is ${failure.retryInMs}, and it must be a number of milliseconds.`)
    this.#failures.set(event.id, { raw, ...failure })
  }

  /** Undefined for what goes to the dead letters at once. */
  #event(raw: RawEvent): QueueEvent | undefined {
    const { schema } = this.#options
    const [id, time, key, delta, data, attempts] = raw
    const attempt = Number(attempts) + 1
    let parsed: unknown = data === null ? null : JSON.parse(data)
    let reason = Number.isSafeInteger(Number(delta)) ? undefined : `delta ${delta} is beyond what a number can hold exactly`
    if (schema !== undefined && reason === undefined) {
      const result = schema.safeParse(parsed)
      if (result.success) parsed = result.data
      else reason = `data: ${result.error.issues.map(({ path, message }) => [path.join('.'), message].filter((part) => part !== '').join(': ')).join('; ')}`
    }
    if (reason !== undefined) {
      this.#failures.set(id, { raw, attempts: attempt, reason, retryInMs: null })
      return undefined
    }
    const event: QueueEvent = { id, time: new Date(Number(time) / 1000), key, delta: Number(delta), data: parsed, attempt }
    this.#given.set(event, raw)
    return event
  }
}
