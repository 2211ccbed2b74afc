import type { Pool } from 'pg'

import { query } from '../executor.ts'

export interface DueCounter {
  name: string
  /** There are events to apply. */
  events: boolean
  /** Something is carried. */
  carried: boolean
}

/** What is due, and the snapshot in which that was seen; `seen` is the snapshot in which nothing was, to be asked less. */
export async function dueCounters(pool: Pool, schema: string, seen?: string): Promise<{ snapshot: string; due: DueCounter[] }> {
  // As JSON text, which no type parser of the caller's changes.
  const [row] = await query<{ snapshot: string; due: string }>(
    pool,
    `select pg_current_snapshot()::text as snapshot, coalesce(json_agg(d), '[]')::text as due from ${schema}.due_counters($1::pg_snapshot) d`,
    [seen ?? null],
  )
  return { snapshot: row?.snapshot ?? '', due: JSON.parse(row?.due ?? '[]') as DueCounter[] }
}
