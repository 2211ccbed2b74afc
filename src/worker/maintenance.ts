import type { Pool } from 'pg'

import { describeError } from '../errors.ts'
import { query } from '../executor.ts'
import { inTransaction } from '../transaction.ts'
import type { Logger } from './logger.ts'

const shortestIntervalMs = 250
const longestIntervalMs = 15_000

/** Empties slots. Nothing depends on when it runs; often enough is a few times in each rotation period. */
export class Maintenance {
  readonly #pool: Pool
  readonly #schema: string
  readonly #logger: Logger
  #nextAt = 0

  constructor(pool: Pool, schema: string, logger: Logger) {
    this.#pool = pool
    this.#schema = schema
    this.#logger = logger
  }

  /** Each queue in a transaction of its own: what is wrong with one does not concern the others. */
  async runIfDue(): Promise<void> {
    if (performance.now() < this.#nextAt) return
    const queues = await query<{ name: string; period: number }>(
      this.#pool,
      `select name, extract(epoch from rotation_period)::float8 * 1000 as period from ${this.#schema}.queue`,
    )
    for (const { name } of queues) {
      try {
        const [row] = await inTransaction(this.#pool, (client) =>
          query<{ emptied: number }>(client, `select ${this.#schema}.rotate($1::text) as emptied`, [name]),
        )
        if (row !== undefined && row.emptied > 0) this.#logger.debug({ queue: name, slots: row.emptied }, 'slots emptied')
      } catch (error) {
        this.#logger.warn({ queue: name, error: describeError(error) }, 'the slots of a queue could not be emptied')
      }
    }
    const shortestPeriod = Math.min(...queues.map(({ period }) => period))
    this.#nextAt = performance.now() + Math.min(Math.max(shortestPeriod / 4, shortestIntervalMs), longestIntervalMs)
  }
}
