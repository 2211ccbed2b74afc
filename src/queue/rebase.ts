import type { Pool } from 'pg'

import { translateDefinitionError } from '../errors.ts'
import { query } from '../executor.ts'
import { requireInstalled } from '../install/install.ts'
import { inLockingTransaction } from '../transaction.ts'

export interface RebasedQueue {
  queue: string
  /** Events that are pending for some consumer: of the old cluster, and those written in this one so far. */
  pendingEvents: number
}

/**
 * Makes the positions of all consumers those of this cluster; one transaction for each queue.
 *
 * @throws PgtallyError NOT_INSTALLED, SCHEMA_TOO_NEW, SCHEMA_TOO_OLD, PERMISSION_DENIED, LOCK_TIMEOUT
 */
export async function rebase(pool: Pool, schema: string): Promise<RebasedQueue[]> {
  try {
    await requireInstalled(pool, schema)
    const queues = await query<{ name: string }>(pool, `select name from ${schema}.queue order by queue_id`)
    const rebased: RebasedQueue[] = []
    for (const { name } of queues) {
      const [row] = await inLockingTransaction(pool, (client) =>
        query<{ pending: string | null }>(client, `select ${schema}.rebase($1::text)::text as pending`, [name]),
      )
      // Null: its positions are this cluster's already.
      if (row?.pending) rebased.push({ queue: name, pendingEvents: Number(row.pending) })
    }
    return rebased
  } catch (error) {
    throw translateDefinitionError(error)
  }
}
