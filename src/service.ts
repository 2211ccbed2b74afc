import type { Pool } from 'pg'

import type { Activity, Observer } from './activity.ts'
import { silent } from './logger.ts'
import type { Logger } from './logger.ts'
import { activityMeter } from './metrics/open-telemetry.ts'

export interface ServiceOptions {
  /** Stops it, as `stop()` does. */
  signal?: AbortSignal | undefined
  logger?: Logger | undefined
}

/** Work that goes on in this process until it is stopped. It never closes the pool and installs no signal handlers. */
export abstract class Service implements AsyncDisposable {
  /**
   * Settles when it has ended: after `stop()`, or with an error when it cannot go on: its pool was ended, it lacks a right, or one of these.
   *
   * @throws PgtallyError NOT_INSTALLED, SCHEMA_TOO_NEW, SCHEMA_TOO_OLD; of a consumer also NOT_FOUND (its queue), IN_USE (a counter has its name)
   */
  readonly done: Promise<void>

  protected readonly pool: Pool
  protected readonly logger: Logger
  readonly #stopping = new AbortController()
  readonly #observers: Observer[] = []

  constructor(pool: Pool, { signal, logger = silent }: ServiceOptions) {
    this.pool = pool
    this.logger = logger
    signal?.addEventListener('abort', () => this.#stopping.abort(), { signal: this.#stopping.signal })
    if (signal?.aborted) this.#stopping.abort()
    // Not before the constructors are through.
    this.done = Promise.resolve().then(() => this.#run())
    // Whoever does not ask for `done` shall not be ended by an unhandled rejection.
    this.done.catch(() => {})
  }

  /** Finishes the batches in hand and ends. Resolves when that is done; may be called again. */
  async stop(): Promise<void> {
    this.#stopping.abort()
    await this.done
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  /** @internal From now on, for good. */
  observe(observer: Observer): void {
    this.#observers.push(observer)
  }

  /** @internal Whether it has been asked to end. */
  get isStopping(): boolean {
    return this.#stopping.signal.aborted
  }

  protected tell(activity: Activity): void {
    for (const observer of this.#observers) observer(activity)
  }

  protected get stopping(): AbortSignal {
    return this.#stopping.signal
  }

  protected abstract run(): Promise<void>

  async #run(): Promise<void> {
    // An idle connection of the pool that dies reports it on the pool; unheard, that would end the process.
    const ignore = (error: Error) => this.logger.debug({ error: error.message }, 'an idle connection was lost')
    this.pool.on('error', ignore)
    const meter = activityMeter()
    if (meter !== undefined) this.observe(meter)
    try {
      await this.run()
    } finally {
      this.pool.off('error', ignore)
    }
  }
}
