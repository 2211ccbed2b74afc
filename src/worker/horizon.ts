import type { Pool } from 'pg'

import { query } from '../executor.ts'

const lookIntervalMs = 1000
const restPerHeldMs = 0.01
const longestRestMs = 1000

/**
 * Notices that something holds back the horizon of the database: the oldest transaction whose view of it must be kept (a forgotten REPEATABLE READ transaction, a
 * dump, a replication slot). Meanwhile no dead version of a row can be pruned. Each batch leaves one of every row that it adds to, and all of those of a hot row are walked over by
 * the next batch, and by each foreign-key check of a new like.
 *
 * So the longer it is held back, the longer a worker rests between batches: a hundredth of that time. The number of versions then grows
 * with the logarithm of the time, up to the longest rest, which bounds how far stored counts can be behind.
 */
export class Horizon {
  readonly #pool: Pool
  #lookAt = 0
  #oldest: string | undefined
  #heldSince = 0

  constructor(pool: Pool) {
    this.#pool = pool
  }

  /** How long to leave between two batches at least, in ms. */
  async restMs(): Promise<number> {
    if (performance.now() >= this.#lookAt) await this.#look()
    return this.#oldest === undefined ? 0 : Math.min((performance.now() - this.#heldSince) * restPerHeldMs, longestRestMs)
  }

  async #look(): Promise<void> {
    // What counts is what ComputeXidHorizons() counts: this database's sessions and standbys, but no vacuum. An age of 0 holds back nothing.
    const [row] = await query<{ oldest: string }>(
      this.#pool,
      `select xmin::text as oldest from (
         select backend_xmin as xmin from pg_stat_activity a
         where (datname = current_database() or datid is null) and not exists (select from pg_stat_progress_vacuum v where v.pid = a.pid)
         union all select xmin from pg_replication_slots
         union all select transaction from pg_prepared_xacts where database = current_database()
       ) held where age(xmin) > 0 order by age(xmin) desc limit 1`,
    )
    const now = performance.now()
    this.#lookAt = now + lookIntervalMs
    // The horizon never goes back: as long as its value is the same, it has not moved in between.
    if (row?.oldest !== this.#oldest) {
      this.#oldest = row?.oldest
      this.#heldSince = now
    }
  }
}
