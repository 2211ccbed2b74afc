import type { Pool } from 'pg'

import { PgtallyError } from '../errors.ts'
import { query } from '../executor.ts'
import { connect, release } from '../transaction.ts'

export interface DueCounter {
  name: string
  /** There are events to apply. */
  events: boolean
  /** Something is carried. */
  carried: boolean
}

/**
 * What is due, and the snapshot in which that was seen; `seen` is the snapshot in which nothing was, to be asked less.
 *
 * @throws PgtallyError READ_ONLY (a standby). Its connection is closed then, as the next one may lead elsewhere after a failover
 */
export async function dueCounters(pool: Pool, schema: string, seen?: string): Promise<{ snapshot: string; due: DueCounter[] }> {
  const client = await connect(pool)
  let broken = true
  try {
    // As JSON text, which no type parser of the caller's changes.
    const [row] = await query<{ standby: string; snapshot: string; due: string }>(
      client,
      `select pg_is_in_recovery()::text as standby, pg_current_snapshot()::text as snapshot, coalesce(json_agg(d), '[]')::text as due from ${schema}.due_counters($1::pg_snapshot) d`,
      [seen ?? null],
    )
    if (row?.standby === 'true') throw new PgtallyError('READ_ONLY', 'The server is a standby, where nothing can be applied. Connect to the primary.')
    broken = false
    return { snapshot: row?.snapshot ?? '', due: JSON.parse(row?.due ?? '[]') as DueCounter[] }
  } finally {
    release(client, broken)
  }
}
