import { query } from '../executor.ts'
import type { Executor } from '../executor.ts'

/** Where a batch is from. Batches of two origins may have the same number; those of one have not. */
export interface Origin {
  database: string
  /** Of the database cluster. */
  systemIdentifier: string
  /** Of the cluster's history: another one after a standby was promoted, or a backup restored to a point in time, from which on numbers are given out again. */
  timeline: number
  /** Another one for a database that was dropped and restored under its name. */
  databaseId: number
  /** Another one for each schema that pgtally is installed in, and each time that it is. */
  installationId: number
}

export async function readOrigin(executor: Executor, schema: string): Promise<Origin> {
  // A checkpoint stores the timeline; until the first one after a promotion, the end of recovery has it.
  const [row] = await query<{ origin: string }>(
    executor,
    `select json_build_object('database', current_database(), 'systemIdentifier', s.system_identifier::text, 'timeline', greatest(c.timeline_id, r.min_recovery_end_timeline),
       'databaseId', (select oid::int8 from pg_database where datname = current_database()), 'installationId', $1::text::regclass::oid::int8)::text as origin
     from pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r`,
    [`${schema}.batch`],
  )
  return JSON.parse(row?.origin ?? '') as Origin
}
