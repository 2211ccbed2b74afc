import type { Pool } from 'pg'

import type { Observer } from '../activity.ts'
import { describeError, isConnectionError } from '../errors.ts'
import { query } from '../executor.ts'
import { inTransaction } from '../transaction.ts'
import type { Logger } from '../logger.ts'
import { traced } from '../open-telemetry.ts'

const shortestIntervalMs = 250
const longestIntervalMs = 15_000
// For the triggers only: rotate() waits for nothing.
const lockTimeoutMs = 200

/** Empties slots, and gives new partitions their triggers. Nothing depends on when it empties: a few times in each rotation period will do. */
export class Maintenance {
  readonly #pool: Pool
  readonly #schema: string
  readonly #logger: Logger
  readonly #tell: Observer
  #nextAt = 0

  constructor(pool: Pool, schema: string, logger: Logger, tell: Observer) {
    this.#pool = pool
    this.#schema = schema
    this.#logger = logger
    this.#tell = tell
  }

  /** Each queue in a transaction of its own: what is wrong with one does not concern the others. */
  async runIfDue(): Promise<void> {
    if (performance.now() < this.#nextAt) return
    // As text, which no type parser of the caller's changes.
    const queues = await query<{ name: string; period: string }>(
      this.#pool,
      `select name, (extract(epoch from rotation_period) * 1000)::text as period from ${this.#schema}.queue`,
    )
    for (const { name } of queues) {
      await this.#tryOn(name, 'rotate', 'slots emptied')
      await this.#tryOn(name, 'sync_triggers', 'triggers brought to new partitions')
    }
    const shortestPeriod = Math.min(...queues.map(({ period }) => Number(period)))
    this.#nextAt = performance.now() + Math.min(Math.max(shortestPeriod / 4, shortestIntervalMs), longestIntervalMs)
  }

  async #tryOn(queue: string, work: 'rotate' | 'sync_triggers', done: string): Promise<void> {
    try {
      const count = await traced({ name: `${work} ${queue}`, isRoot: true, attributes: { 'messaging.system': 'pgtally', 'messaging.destination.name': queue } }, async (say) => {
        const [row] = await inTransaction(this.#pool, async (client) => {
          await client.query(`set local lock_timeout = ${lockTimeoutMs}`)
          return query<{ count: string }>(client, `select ${this.#schema}.${work}($1::text)::text as count`, [queue])
        }, { readWrite: true })
        say({ 'pgtally.count': Number(row?.count) })
        return Number(row?.count)
      })
      if (!(count > 0)) return
      this.#logger.debug({ queue, count }, done)
      if (work === 'rotate') this.#tell({ kind: 'empty slots', queue, slots: count })
    } catch (error) {
      if (isConnectionError(error)) throw error
      this.#logger.warn({ queue, error: describeError(error) }, `${work}() failed, it will be tried again`)
    }
  }
}
