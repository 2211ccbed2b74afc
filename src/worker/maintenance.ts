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

/** Empties slots of queues and of time buckets, and gives new partitions their triggers. Nothing depends on when it empties: a few times in each slot's time will do. */
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

  /** Each queue and counter in a transaction of its own: what is wrong with one does not concern the others. */
  async runIfDue(): Promise<void> {
    if (performance.now() < this.#nextAt) return
    const queues = await this.#periods('select name, rotation_period as period from SCHEMA.queue')
    const counters = await this.#periods('select k.name, min(b.slot_span) as period from SCHEMA.bucket b join SCHEMA.counter k using (counter_id) where b.slot_span is not null group by 1')
    for (const { name } of queues) {
      await this.#tryOn(name, 'rotate', 'slots emptied')
      await this.#tryOn(name, 'sync_triggers', 'triggers brought to new partitions')
    }
    for (const { name } of counters) await this.#tryOn(name, 'expire_buckets', 'slots of buckets emptied')
    const shortestPeriod = Math.min(...[...queues, ...counters].map(({ period }) => Number(period)))
    this.#nextAt = performance.now() + Math.min(Math.max(shortestPeriod / 4, shortestIntervalMs), longestIntervalMs)
  }

  /** How long one slot of each is written, in ms. */
  async #periods(text: string): Promise<{ name: string; period: string }[]> {
    // As text, which no type parser of the caller's changes.
    return query(this.#pool, `select name, (extract(epoch from period) * 1000)::text as period from (${text.replaceAll('SCHEMA', this.#schema)}) p`)
  }

  /** @param name of a queue, or for `expire_buckets` of a counter */
  async #tryOn(name: string, work: 'rotate' | 'sync_triggers' | 'expire_buckets', done: string): Promise<void> {
    try {
      const count = await traced({ name: `${work} ${name}`, isRoot: true, attributes: { 'messaging.system': 'pgtally', 'messaging.destination.name': name } }, async (say) => {
        const [row] = await inTransaction(this.#pool, async (client) => {
          await client.query(`set local lock_timeout = ${lockTimeoutMs}`)
          return query<{ count: string }>(client, `select ${this.#schema}.${work}($1::text)::text as count`, [name])
        }, { readWrite: true })
        say({ 'pgtally.count': Number(row?.count) })
        return Number(row?.count)
      })
      if (!(count > 0)) return
      this.#logger.debug({ [work === 'expire_buckets' ? 'counter' : 'queue']: name, count }, done)
      if (work === 'rotate') this.#tell({ kind: 'empty slots', queue: name, slots: count })
    } catch (error) {
      if (isConnectionError(error)) throw error
      this.#logger.warn({ name, error: describeError(error) }, `${work}() failed, it will be tried again`)
    }
  }
}
