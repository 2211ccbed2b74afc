import { query } from '../executor.ts'
import { requireInstalled } from '../install/install.ts'
import { inTransaction } from '../transaction.ts'
import { estimatedKeys } from './audit.ts'
import type { CounterPlace } from './audit.ts'
import { callMeasuring, measureRanges, measurementOf, nothingMeasured } from './measure.ts'
import type { MeasureOptions, Measurement } from './measure.ts'

export interface ReconcileOptions<K> extends MeasureOptions {
  /** Only these keys. */
  keys?: readonly K[] | undefined
  /** Begin with the first key, where an earlier reconciliation was interrupted and this one would go on with it. Default false. */
  restart?: boolean | undefined
}

export async function reconcile(place: CounterPlace, keys: readonly string[] | undefined, { restart = false, ...options }: Omit<ReconcileOptions<never>, 'keys'>): Promise<Measurement> {
  const { pool, schema, name } = place
  await requireInstalled(pool, schema)
  if (keys !== undefined) return measurementOf(name, await callMeasuring(pool, `${schema}.reconcile_keys($1::text, $2::text[])`, [name, keys]))
  const estimated = await estimatedKeys(place)
  const measurement = nothingMeasured(name)
  let again = restart
  do {
    const [begun] = await inTransaction(pool, (client) =>
      query<{ id: string }>(client, `select ${schema}.begin_reconciliation($1::text, $2::bool)::text as id`, [name, again]),
    )
    await measureRanges(name, estimated, { ...options, gently: false, into: measurement }, (_, maxKeys) =>
      callMeasuring(pool, `${schema}.reconcile_range($1::text::bigint, $2::int4)`, [begun?.id, maxKeys]),
    )
    again = false
    // One that was begun anew meanwhile, by a restart or since partitions have come, has another number.
  } while (await isUnfinished(place))
  return measurement
}

async function isUnfinished({ pool, schema, name }: CounterPlace, reason?: 'backfill'): Promise<boolean> {
  const rows = await query(
    pool,
    `select r.reason from ${schema}.reconciliation r join ${schema}.counter k using (counter_id) where k.name = $1::text and r.reason = coalesce($2::text, r.reason)`,
    [name, reason ?? null],
  )
  return rows.length > 0
}

/** Counts what the source of a new counter holds already, unless that has been done. */
export async function backfill(place: CounterPlace, options: MeasureOptions): Promise<void> {
  if (await isUnfinished(place, 'backfill')) await reconcile(place, undefined, options)
}

/** Sets counts back to 0. */
export async function reset({ pool, schema, name }: CounterPlace, keys: readonly string[] | undefined): Promise<void> {
  await requireInstalled(pool, schema)
  if (keys !== undefined) {
    await inTransaction(pool, (client) => query(client, `select ${schema}.reset_keys($1::text, $2::text[])::text`, [name, keys]))
    return
  }
  await measureRanges(name, null, { gently: false }, (after, maxKeys) => callMeasuring(pool, `${schema}.reset_range($1::text, $2::text, $3::int4)`, [name, after, maxKeys]))
}
