import { setTimeout as sleep } from 'node:timers/promises'

import type { Pool } from 'pg'
import { z } from 'zod'

import { PgtallyError, describeError, isConnectionError, isDatabaseError } from '../errors.ts'
import { requireInstalled } from '../install/install.ts'
import { CounterTask } from './counter-task.ts'
import { dueCounters } from './due-counters.ts'
import type { DueCounter } from './due-counters.ts'
import { Horizon } from './horizon.ts'
import { HotKeys } from './hot-keys.ts'
import { Maintenance } from './maintenance.ts'
import { observeState } from '../metrics/open-telemetry.ts'
import { Reporter } from './reporter.ts'
import type { OnApplied } from './reporter.ts'
import { Service } from '../service.ts'
import type { ServiceOptions } from '../service.ts'

export interface WorkerOptions extends ServiceOptions {
  /**
   * Time between two looks for new events while there are some, in ms. Default 25. The stored counts are about this far behind. While something holds back the
   * database's oldest transaction (xmin), it is a hundredth of the time that this has lasted, up to a second, if that is more.
   */
  pollIntervalMs?: number
  /** Time between two looks while there is nothing to do, in ms. Default 100. */
  idlePollIntervalMs?: number
  /** How many counters are applied at a time, each on a connection of the pool. Default 4. */
  concurrency?: number
  /** A batch is cut at this many events. Default 1 000 000. */
  maxBatchEvents?: number
  /**
   * Called after each commit of this worker that has changed stored counts, with the new ones: to keep a cache up to date, to tell who is looking at a post.
   *
   * Calls for one counter come in the order of their versions and never overlap; the counter's next batch waits for the call, 2 s at most. What changes until an overdue call returns is
   * not told, nor what a call that throws was about, nor what was committed just before a crash: at most once. What other workers apply, or `drain()`, they tell or do not tell themselves.
   * The commit is waited for (`synchronous_commit`), which it otherwise is not.
   */
  onApplied?: OnApplied | undefined
  /**
   * NOTIFY listeners of each commit that has changed stored counts: on the channel that is named like the schema, `{"counter": "post_likes", "version": "17"}`. At most one for each
   * transaction. Off by default: for NOTIFY a commit takes a lock that all notifying transactions of the cluster share, and the commit is waited for.
   */
  notify?: boolean
}

export const workerDefaults = { pollIntervalMs: 25, idlePollIntervalMs: 100, concurrency: 4, maxBatchEvents: 1_000_000 } as const

const atLeastOne = (value: number) => z.int().min(1).default(value)
const optionsSchema = z.object({
  pollIntervalMs: atLeastOne(workerDefaults.pollIntervalMs),
  idlePollIntervalMs: atLeastOne(workerDefaults.idlePollIntervalMs),
  concurrency: atLeastOne(workerDefaults.concurrency),
  maxBatchEvents: atLeastOne(workerDefaults.maxBatchEvents),
  notify: z.boolean().default(false),
})

const longestReconnectDelayMs = 5000

/**
 * Applies events and empties slots until it is stopped. Any number of workers share the work on one database, without being told of one another.
 * It survives the loss of the database, with back-off.
 */
export class Worker extends Service {
  readonly #schema: string
  readonly #options: z.infer<typeof optionsSchema>
  readonly #onApplied: OnApplied | undefined
  readonly #tasks = new Map<string, CounterTask>()
  /** @internal */
  readonly hotKeys = new HotKeys()

  /** @internal Use `tally.worker()`. */
  constructor(pool: Pool, schema: string, { signal, logger, onApplied, ...options }: WorkerOptions) {
    const parsed = optionsSchema.safeParse(options)
    if (!parsed.success) throw new PgtallyError('INVALID_ARGUMENT', `Options of the worker: ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
    super(pool, { signal, logger })
    this.#schema = schema
    this.#options = parsed.data
    this.#onApplied = onApplied
  }

  protected override async run(): Promise<void> {
    const endObserving = observeState(this.pool, this.#schema)
    try {
      await this.#loop()
    } finally {
      endObserving()
      await Promise.all([...this.#tasks.values()].map((task) => task.idle()))
      this.logger.info({}, 'worker stopped')
    }
  }

  async #loop(): Promise<void> {
    const { pollIntervalMs, idlePollIntervalMs } = this.#options
    const signal = this.stopping
    const maintenance = new Maintenance(this.pool, this.#schema, this.logger, (activity) => this.tell(activity))
    const horizon = new Horizon(this.pool)
    let delayMs = pollIntervalMs
    let reconnectDelayMs = 0
    let started = false
    let seen: string | undefined
    let lastWarning: string | undefined
    while (!signal.aborted) {
      try {
        if (!started || reconnectDelayMs > 0) await requireInstalled(this.pool, this.#schema)
        if (!started) this.logger.info({ schema: this.#schema }, 'worker started')
        started = true
        const { snapshot, due } = await dueCounters(this.pool, this.#schema, seen)
        seen = due.length === 0 ? snapshot : undefined
        delayMs = this.#start(due) ? Math.max(pollIntervalMs, await horizon.restMs()) : Math.min(delayMs * 2, idlePollIntervalMs)
        await maintenance.runIfDue()
        if (reconnectDelayMs > 0) this.logger.info({ schema: this.#schema }, 'connected to the database again')
        reconnectDelayMs = 0
        lastWarning = undefined
        this.tell({ kind: 'look', error: undefined, nextInMs: delayMs })
      } catch (error) {
        // Whatever it is (a lost connection, an upgrade under way), the next round begins by looking what is installed.
        if (this.pool.ending || isFatal(error, started)) throw error
        seen = undefined
        reconnectDelayMs = Math.min(Math.max(reconnectDelayMs * 2, 100), longestReconnectDelayMs)
        delayMs = reconnectDelayMs
        const warning = describeError(error)
        // Once for each reason, however long it lasts.
        const level = warning === lastWarning ? 'debug' : 'warn'
        this.logger[level]({ error: warning, retryInMs: delayMs }, isConnectionError(error) ? 'no connection to the database' : 'cannot look for work, it will be tried again')
        lastWarning = warning
        this.tell({ kind: 'look', error, nextInMs: delayMs })
      }
      await sleep(delayMs, undefined, { signal }).catch(() => {})
    }
  }

  /** Starts what is due, as far as there is room, those first that have waited longest. Returns whether it started anything. */
  #start(due: readonly DueCounter[]): boolean {
    const { concurrency, maxBatchEvents } = this.#options
    let room = concurrency - [...this.#tasks.values()].filter((task) => task.running).length
    let startedAny = false
    const inTurn = due
      .map((counter) => ({ counter, task: this.#task(counter.name, maxBatchEvents) }))
      .toSorted((one, other) => one.task.startedAt - other.task.startedAt)
    for (const { counter, task } of inTurn) {
      if (room === 0) break
      if (task.start(counter)) {
        startedAny = true
        room--
      }
    }
    return startedAny
  }

  #task(name: string, maxBatchEvents: number): CounterTask {
    let task = this.#tasks.get(name)
    if (task === undefined) {
      const reporter = this.#onApplied && new Reporter(this.#onApplied, this.logger)
      task = new CounterTask(this.pool, this.#schema, name, maxBatchEvents, this.logger, this.stopping, { reporter, notify: this.#options.notify, hotKeys: this.hotKeys }, (activity) => this.tell(activity))
      this.#tasks.set(name, task)
    }
    return task
  }
}

/** What pgtally itself refuses, or a missing right, does not pass by waiting; nor does a wrong password or database at the start. */
function isFatal(error: unknown, started: boolean): boolean {
  if (error instanceof PgtallyError) return error.code !== 'READ_ONLY'
  return isDatabaseError(error) && (error.code === '42501' || (!started && /^(28|3D)/.test(error.code)))
}
