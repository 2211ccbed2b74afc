import { setTimeout as sleep } from 'node:timers/promises'

import type { Pool, PoolClient } from 'pg'

import { PgtallyError, describeError, isDatabaseError } from '../errors.ts'
import { query } from '../executor.ts'
import type { Executor } from '../executor.ts'
import { requireInstalled } from '../install/install.ts'
import { traced } from '../open-telemetry.ts'
import { inTransaction } from '../transaction.ts'
import { Service } from '../service.ts'
import type { ServiceOptions } from '../service.ts'
import { HandledBatch } from './batch.ts'
import type { ExportedBatch } from './batch.ts'
import type { ParsedDefinition } from './definition.ts'
import { readEvents, readEventsApart } from './read-events.ts'

const lockTimeoutMs = 1000
const idleGraceMs = 5000
const shortestBackOffMs = 250
const longestBackOffMs = 60_000
const longestReconnectDelayMs = 5000

interface Claimed {
  batch_id: string | null
  claim: number
  cut: boolean
  token: string
}

const milliseconds = (parameter: string) => `${parameter}::float8 * interval '1 millisecond'`

/** Errors that no waiting mends. OTHER_CLUSTER and the like are mended by someone, while this goes on. */
const fatalCodes: ReadonlySet<string> = new Set(['NOT_INSTALLED', 'SCHEMA_TOO_NEW', 'SCHEMA_TOO_OLD', 'NOT_FOUND', 'IN_USE', 'INVALID_DEFINITION'])

/**
 * Gives a queue's events to a handler until it is stopped. Any number of processes may run the same consumer.
 * It survives the loss of the database, with back-off.
 */
export class Consumer extends Service {
  readonly #schema: string
  readonly #definition: ParsedDefinition
  /** Null: not known, an earlier process may have left one. */
  #lastError: string | undefined | null = null

  /** @internal Use `tally.consumer()`. */
  constructor(pool: Pool, schema: string, definition: ParsedDefinition, options: ServiceOptions) {
    super(pool, options)
    this.#schema = schema
    this.#definition = definition
  }

  /** @internal */
  get names(): { queue: string; consumer: string } {
    return { queue: this.#definition.queue, consumer: this.#definition.name }
  }

  protected override async run(): Promise<void> {
    try {
      await this.#start()
      // Each handles one batch at a time. When one cannot go on, none can.
      const failed = new AbortController()
      const lanes = Array.from({ length: this.#definition.concurrency }, () =>
        this.#handleAll(AbortSignal.any([this.stopping, failed.signal])).catch((error: unknown) => {
          failed.abort()
          throw error
        }),
      )
      await Promise.allSettled(lanes)
      await Promise.all(lanes)
    } finally {
      this.logger.info(this.names, 'consumer stopped')
    }
  }

  async #start(): Promise<void> {
    const { queue, name } = this.#definition
    for (let delayMs = 100; !this.stopping.aborted; delayMs = Math.min(delayMs * 2, longestReconnectDelayMs)) {
      try {
        await requireInstalled(this.pool, this.#schema)
        await inTransaction(this.pool, (client) => query(client, `select ${this.#schema}.register_consumer($1::text, $2::text)`, [queue, name]))
        this.logger.info(this.names, 'consumer started')
        return
      } catch (error) {
        if (this.#isFatal(error)) throw error
        this.logger.warn({ ...this.names, error: describeError(error), retryInMs: delayMs }, 'the consumer cannot start')
        await sleep(delayMs, undefined, { signal: this.stopping }).catch(() => {})
      }
    }
  }

  async #handleAll(stopping: AbortSignal): Promise<void> {
    const { pollIntervalMs } = this.#definition
    let reconnectDelayMs = 0
    while (!stopping.aborted) {
      let delayMs = pollIntervalMs
      try {
        if (await this.#handleNext()) delayMs = 0
        reconnectDelayMs = 0
      } catch (error) {
        if (this.#isFatal(error)) throw error
        reconnectDelayMs = Math.min(Math.max(reconnectDelayMs * 2, 100), longestReconnectDelayMs)
        delayMs = reconnectDelayMs
        await this.#report(error)
      }
      if (delayMs > 0) await sleep(delayMs, undefined, { signal: stopping }).catch(() => {})
    }
  }

  /** Handles a batch, if there is one. Returns whether there is more. */
  async #handleNext(): Promise<boolean> {
    const { queue, name, mode, minEvents, maxWaitMs, ordered } = this.#definition
    const [row] = await query<{ due: string }>(
      this.pool,
      `select ${this.#schema}.due_batch($1::text, $2::text, $3::int4, ${milliseconds('$4')}, $5::bool)::text as due`,
      [queue, name, minEvents, maxWaitMs, ordered],
    )
    if (row?.due !== 'true') return false
    const { batch_id: id, claim, cut, token } = await this.#claim()
    if (id === null) return false
    const startedAt = performance.now()
    try {
      const attributes = { 'messaging.system': 'pgtally', 'messaging.operation.type': 'process', 'messaging.operation.name': 'process', 'messaging.destination.name': queue, 'messaging.consumer.group.name': name }
      await traced({ name: `process ${queue}`, isRoot: true, isBatch: true, attributes: { ...attributes, 'pgtally.batch.id': id, 'pgtally.batch.attempt': claim } }, () =>
        mode === 'transactional' ? this.#handleInTransaction(id, claim, token) : this.#handleAtLeastOnce(id, claim, token),
      )
    } catch (error) {
      await this.#giveBack(id, claim, error)
      return false
    }
    this.logger.debug({ ...this.names, batch: id, attempt: claim }, 'batch finished')
    this.tell({ kind: 'handle', ...this.names, ms: performance.now() - startedAt })
    await this.#recover()
    return cut
  }

  async #claim(): Promise<Claimed> {
    const { queue, name, mode, leaseMs, maxEvents, minEvents, maxWaitMs, ordered } = this.#definition
    const text = `select row_to_json(c)::text as claimed from (
      select batch_id::text, claim, cut, token from ${this.#schema}.claim_batch($1::text, $2::text, ${milliseconds('$3')}, $4::int4, $5::int4, ${milliseconds('$6')}, $7::bool)
    ) c`
    const values = [queue, name, leaseMs, maxEvents, minEvents, maxWaitMs, ordered]
    // A crash of the server that takes this away takes what came after it as well. But not what is elsewhere: for that the batch must be there for good, and with it, as
    // the log is written in order, each event in it.
    const [row] = await inTransaction(this.pool, (client) => query<{ claimed: string }>(client, text, values), { asynchronousCommit: mode === 'transactional' })
    return JSON.parse(row?.claimed ?? '') as Claimed
  }

  /** Effects, what was left aside, and the end of the batch, all or none of them. Nobody can take the batch over meanwhile. */
  async #handleInTransaction(id: string, claim: number, token: string): Promise<void> {
    const { timeoutMs } = this.#definition
    const lost = new AbortController()
    await inTransaction(
      this.pool,
      async (client) => {
        // For what this process cannot end: a statement that hangs there, and a connection that it has lost sight of. Idle, it is closed from here first.
        await client.query(`set local statement_timeout = ${timeoutMs}; set local idle_in_transaction_session_timeout = ${timeoutMs + idleGraceMs}`)
        await this.#call(client, 'lock_batch($1::int8, $2::int4)', id, claim)
        const batch = this.#batch(id, claim, token, lost.signal, client)
        await this.#withTimeout(lost, this.#work(batch, client))
        await this.#finish(client, batch, claim)
      },
      { signal: lost.signal },
    )
  }

  async #handleAtLeastOnce(id: string, claim: number, token: string): Promise<void> {
    const { leaseMs } = this.#definition
    const lost = new AbortController()
    const renewing = setInterval(() => {
      this.#call(this.pool, `renew_claim($1::int8, $2::int4, ${milliseconds('$3')})`, id, claim, leaseMs).catch((error: unknown) => {
        if (error instanceof PgtallyError && error.code === 'BATCH_LOST') lost.abort(error)
        else this.logger.warn({ ...this.names, batch: id, error: describeError(error) }, 'the claim could not be renewed')
      })
    }, leaseMs / 3)
    try {
      const batch = this.#batch(id, claim, token, lost.signal)
      await this.#withTimeout(lost, this.#work(batch))
      await inTransaction(this.pool, (client) => this.#finish(client, batch, claim))
    } finally {
      clearInterval(renewing)
    }
  }

  #batch(id: string, attempt: number, token: string, signal: AbortSignal, client?: PoolClient): HandledBatch {
    const { schema, maxAttempts } = this.#definition
    return new HandledBatch({
      id,
      token,
      attempt,
      signal,
      client,
      schema,
      maxAttempts,
      read: () => (client === undefined ? readEventsApart(this.pool, this.#schema, id) : readEvents(client, this.#schema, id)),
      deltas: async () => {
        const text = `select key, delta::text, events::text from ${this.#schema}.get_batch_deltas($1)`
        const read = (reader: PoolClient) => query<Record<'key' | 'delta' | 'events', string>>(reader, text, [id])
        const rows = await (client === undefined ? inTransaction(this.pool, read, { signal }) : read(client))
        return rows.map(({ key, delta, events }) => {
          if (!Number.isSafeInteger(Number(delta))) throw new PgtallyError('UNSAFE_COUNT', `Batch ${id}: the sum of ${key}, ${delta}, is beyond what a number can hold. Read the events one by one, or less at a time (maxEvents).`)
          return { key, delta: Number(delta), events: Number(events) }
        })
      },
      export: async () => {
        const text = `select batch::text, keys::text, deltas::text from ${this.#schema}.export_batch($1)`
        const [row] = await inTransaction(this.pool, (reader) => query<Record<keyof ExportedBatch, string>>(reader, text, [id]), { signal })
        return row as ExportedBatch
      },
    })
  }

  async #work(batch: HandledBatch, client?: PoolClient): Promise<void> {
    const { handler, each } = this.#definition
    if (handler !== undefined) return handler(batch as never)
    for await (const event of batch) {
      await client?.query('savepoint pgtally_event')
      try {
        await each?.(event as never, batch as never)
        await client?.query('release savepoint pgtally_event')
      } catch (error) {
        batch.signal.throwIfAborted()
        // Where the connection is the trouble, this fails, and with it the whole batch.
        await client?.query('rollback to savepoint pgtally_event; release savepoint pgtally_event')
        batch.retry(event, { reason: describeError(error) })
      }
    }
  }

  /** What does not stop in time is left behind. */
  async #withTimeout(lost: AbortController, work: Promise<void>): Promise<void> {
    const { timeoutMs } = this.#definition
    const timer = setTimeout(() => lost.abort(new PgtallyError('TIMEOUT', `The handler did not end within ${timeoutMs} ms. Handle less at a time (maxEvents), or give it more time (timeoutMs).`)), timeoutMs)
    const aborted = new Promise<never>((_, reject) => {
      lost.signal.addEventListener('abort', () => reject(lost.signal.reason), { once: true })
    })
    try {
      await Promise.race([work, aborted])
    } finally {
      clearTimeout(timer)
    }
  }

  async #finish(client: PoolClient, batch: HandledBatch, claim: number): Promise<void> {
    await batch.settle(client, this.#schema, this.#definition.queue, this.#definition.name)
    await this.#call(client, 'finish_batch($1::int8, $2::int4)', batch.id, claim)
  }

  /** After the handler has failed. Never throws: what cannot be given back is taken over when its lease is over. */
  async #giveBack(id: string, claim: number, error: unknown): Promise<void> {
    if (this.#isLost(id, error)) return
    const retryInMs = Math.min(shortestBackOffMs * 2 ** (claim - 1), longestBackOffMs)
    try {
      await inTransaction(this.pool, async (client) => {
        // The connection of a handler that hangs may hold it still.
        await client.query(`set local lock_timeout = ${lockTimeoutMs}`)
        await this.#call(client, `release_batch($1::int8, $2::int4, ${milliseconds('$3')}, $4::text, $5::int4)`, id, claim, retryInMs, describeError(error), this.#definition.maxAttempts)
      })
    } catch (releaseError) {
      // Then it does not matter what else went wrong with it.
      if (this.#isLost(id, releaseError)) return
      this.logger.debug({ ...this.names, batch: id, error: describeError(releaseError) }, 'the batch could not be given back')
    }
    await this.#report(error, { batch: id, retryInMs })
  }

  #isLost(id: string, error: unknown): boolean {
    const lost = error instanceof PgtallyError && error.code === 'BATCH_LOST'
    if (lost) this.logger.warn({ ...this.names, batch: id, error: error.message }, 'the batch was taken over by another process')
    return lost
  }

  async #call(executor: Executor, text: string, id: string, claim: number, ...more: unknown[]): Promise<void> {
    await query(executor, `select ${this.#schema}.${text}`, [id, claim, ...more])
  }

  /** Says so when it is something new, and keeps it for `status()`. */
  async #report(error: unknown, details: object = {}): Promise<void> {
    this.tell({ kind: 'handle failed', ...this.names })
    const message = describeError(error)
    if (message !== this.#lastError) this.logger.warn({ ...this.names, ...details, error: message }, 'the consumer cannot go on, its events wait')
    this.#lastError = message
    await this.#record(message)
  }

  async #recover(): Promise<void> {
    const lastError = this.#lastError
    if (lastError === undefined) return
    this.#lastError = undefined
    if (lastError !== null) this.logger.info(this.names, 'the consumer goes on')
    await this.#record(null)
  }

  async #record(message: string | null): Promise<void> {
    const { queue, name } = this.#definition
    try {
      await query(this.pool, `select ${this.#schema}.record_consumer_error($1::text, $2::text, $3::text)`, [queue, name, message])
    } catch (error) {
      this.logger.debug({ ...this.names, error: describeError(error) }, 'the error could not be recorded')
    }
  }

  #isFatal(error: unknown): boolean {
    if (this.pool.ending) return true
    if (error instanceof PgtallyError) return fatalCodes.has(error.code)
    return isDatabaseError(error) && error.code === '42501'
  }
}
