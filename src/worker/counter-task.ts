import type { Pool } from 'pg'

import type { Observer } from '../activity.ts'
import { describeError, isConnectionError, isDatabaseError } from '../errors.ts'
import { query } from '../executor.ts'
import { Applier } from './applier.ts'
import type { BatchResult, Telling } from './applier.ts'
import type { DueCounter } from './due-counters.ts'
import type { Logger } from '../logger.ts'
import { traced } from '../open-telemetry.ts'

const carriedIntervalMs = 250
const waitIntervalMs = 1000
const shortestRetryMs = 250
const longestRetryMs = 5000
const smallestBatch = 1000

const now = () => performance.now()

/** One counter in one worker: its batches, what it carries, and its back-off when it is broken. */
export class CounterTask {
  readonly #pool: Pool
  readonly #schema: string
  readonly #name: string
  readonly #applier: Applier
  readonly #maxBatchEvents: number
  readonly #logger: Logger
  readonly #signal: AbortSignal
  readonly #tell: Observer

  #running: Promise<void> | undefined
  #waiting: Promise<void> | undefined
  #failures = 0
  #lastError: string | undefined
  #retryAt = 0
  #carriedAt = 0
  #waitAt = 0
  #maxEvents: number
  #uncut = false
  /** When it was last started, for taking turns. */
  startedAt = 0

  constructor(pool: Pool, schema: string, name: string, maxBatchEvents: number, logger: Logger, signal: AbortSignal, telling: Telling, tell: Observer) {
    this.#pool = pool
    this.#schema = schema
    this.#name = name
    this.#applier = new Applier(pool, schema, name, telling)
    this.#maxBatchEvents = maxBatchEvents
    this.#maxEvents = maxBatchEvents
    this.#logger = logger
    this.#signal = signal
    this.#tell = tell
  }

  get running(): boolean {
    return this.#running !== undefined
  }

  /** Starts what is due, unless it is at work already or backing off. Never throws. Returns whether it started something. */
  start(due: DueCounter): boolean {
    if (this.running || now() < this.#retryAt) return false
    const carried = due.carried && now() >= this.#carriedAt
    if (due.carried && this.#waiting === undefined && now() >= this.#waitAt) {
      this.#waitAt = now() + waitIntervalMs
      this.#waiting = this.#waitForCarried().finally(() => {
        this.#waiting = undefined
      })
    }
    if (!due.events && !carried) return false
    this.startedAt = now()
    this.#running = this.#run(due.events, carried).finally(() => {
      this.#running = undefined
    })
    return true
  }

  /** Resolves when nothing is under way. */
  async idle(): Promise<void> {
    await Promise.all([this.#running, this.#waiting])
  }

  async #run(events: boolean, carried: boolean): Promise<void> {
    try {
      // The batches first: a correction may take away what only they add, which a CHECK of the target objects to by itself.
      // Another worker that is at it tells nothing about what is wrong.
      if (events && (await this.#applyBatches())) this.#recover()
      if (carried) {
        this.#carriedAt = now() + carriedIntervalMs
        await this.#applier.applyCarried()
      }
    } catch (error) {
      await this.#fail(error)
    }
  }

  /** Returns whether a batch was applied. */
  async #applyBatches(): Promise<boolean> {
    let result: BatchResult
    let applied = false
    do {
      const startedAt = now()
      result = await this.#applyBatch(this.#uncut ? null : this.#maxEvents)
      this.#uncut = false
      this.#maxEvents = Math.min(this.#maxEvents * 2, this.#maxBatchEvents)
      if (result.events !== null) {
        applied = true
        const { events, keys, carried } = result
        const ms = now() - startedAt
        this.#logger.debug({ counter: this.#name, events, keys, carried, ms: Math.round(ms) }, 'batch applied')
        this.#tell({ kind: 'apply', counter: this.#name, events, ms })
      }
    } while (result.cut && !this.#signal.aborted)
    return applied
  }

  async #applyBatch(maxEvents: number | null): Promise<BatchResult> {
    const attributes = { 'messaging.system': 'pgtally', 'messaging.operation.type': 'process', 'messaging.operation.name': 'apply', 'messaging.consumer.group.name': this.#name }
    return traced({ name: `apply ${this.#name}`, isRoot: true, isBatch: true, attributes }, async (say) => {
      const result = await this.#applier.applyBatch(maxEvents)
      const { events, keys, carried, busy } = result
      say({ 'messaging.batch.message_count': events ?? 0, 'pgtally.batch.keys': keys ?? 0, 'pgtally.batch.carried_keys': carried ?? 0, 'pgtally.busy': busy })
      return result
    })
  }

  /** Beside the batches, which go on meanwhile; it holds nothing but its place in line. */
  async #waitForCarried(): Promise<void> {
    try {
      await this.#applier.waitForCarried()
    } catch (error) {
      this.#logger.debug({ counter: this.#name, error: describeError(error) }, 'a locked row could not be waited for')
    }
  }

  /** The batch itself has taken the recorded error back. */
  #recover(): void {
    if (this.#failures === 0) return
    this.#lastError = undefined
    this.#failures = 0
    this.#logger.info({ counter: this.#name }, 'the counter goes on')
  }

  async #fail(error: unknown): Promise<void> {
    this.#failures++
    this.#retryAt = now() + Math.min(shortestRetryMs * 2 ** (this.#failures - 1), longestRetryMs)
    // The worker's own look at the database will say so, once for all counters.
    if (isConnectionError(error)) return
    this.#tell({ kind: 'apply failed', counter: this.#name })
    const state = isDatabaseError(error) ? error.code : undefined
    // statement_timeout or transaction_timeout: try with less. One transaction's events cannot be divided, and may take longer all the same.
    if (state === '57014' || state === '25P04') {
      if (this.#maxEvents <= smallestBatch) this.#applier.takeTime()
      this.#maxEvents = Math.max(Math.ceil(this.#maxEvents / 8), smallestBatch)
      this.#applier.takeLess()
    }
    // A CHECK constraint may object to a cut batch only, where a delete can come before its insert.
    if (state === '23514') this.#uncut = true
    const message = describeError(error)
    if (message !== this.#lastError) this.#logger.warn({ counter: this.#name, error: message }, 'the counter cannot go on, its events wait')
    this.#lastError = message
    try {
      await query(this.#pool, `select ${this.#schema}.record_error($1::text, $2::text)`, [this.#name, message])
    } catch (recordError) {
      this.#logger.debug({ counter: this.#name, error: describeError(recordError) }, 'the error could not be recorded')
    }
  }
}
