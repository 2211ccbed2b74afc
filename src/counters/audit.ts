import type { Pool } from 'pg'

import { PgtallyError, isDatabaseError } from '../errors.ts'
import { query } from '../executor.ts'
import { requireInstalled } from '../install/install.ts'
import { callMeasuring, measureRanges, measurementOf } from './measure.ts'
import type { MeasureOptions, Measurement } from './measure.ts'

/** A counter, for the functions that work on it. */
export interface CounterPlace {
  pool: Pool
  schema: string
  name: string
}

export interface AuditOptions<K> extends MeasureOptions {
  /** Only these keys. */
  keys?: readonly K[] | undefined
  /** Only so many keys, taken at random. */
  sample?: number | undefined
  /** Hold the counts against this column of the target instead of the source. */
  against?: string | undefined
}

export async function audit(place: CounterPlace, keys: readonly string[] | undefined, { sample, against, ...options }: Omit<AuditOptions<never>, 'keys'>): Promise<Measurement> {
  const { pool, schema, name } = place
  if (keys !== undefined && sample !== undefined) throw new PgtallyError('INVALID_ARGUMENT', 'An audit is of certain keys or of a sample, not both.')
  await requireInstalled(pool, schema)
  const chosen = sample === undefined ? keys : await sampleKeys(place, sample)
  if (chosen !== undefined) {
    const range = await callMeasuring(pool, `${schema}.audit_keys($1::text, $2::text[], $3::name)`, [name, chosen, against])
    const measurement = measurementOf(name, range)
    if (sample !== undefined && against === undefined) await recordAudit(place, measurement, 'of a sample')
    return measurement
  }
  const measurement = await measureRanges(name, await estimatedKeys(place), { ...options, gently: true }, (after, maxKeys) =>
    callMeasuring(pool, `${schema}.audit_range($1::text, $2::text, $3::int4, $4::name)`, [name, after, maxKeys, against]),
  )
  if (against === undefined) await recordAudit(place, measurement, 'complete')
  return measurement
}

/** For `status()`. Whoever may only read has audited all the same. */
async function recordAudit({ pool, schema, name }: CounterPlace, { checkedKeys, driftingKeys }: Measurement, extent: 'complete' | 'of a sample'): Promise<void> {
  try {
    await query(pool, `select ${schema}.record_audit($1::text, $2::bool, $3::int8, $4::int8)::text`, [name, extent === 'complete', checkedKeys, driftingKeys])
  } catch (error) {
    const mayNot = isDatabaseError(error) && error.code === '42501'
    if (!mayNot) throw error
  }
}

async function sampleKeys({ pool, schema, name }: CounterPlace, sample: number): Promise<string[]> {
  // As JSON text, which no type parser of the caller's changes.
  const [row] = await query<{ keys: string }>(pool, `select to_json(${schema}.sample_keys($1::text, $2::int4))::text as keys`, [name, sample])
  return JSON.parse(row?.keys ?? '[]') as string[]
}

export async function estimatedKeys({ pool, schema, name }: CounterPlace): Promise<number | null> {
  const [row] = await query<{ keys: string | null }>(pool, `select ${schema}.estimated_keys(${schema}.require_counter($1::text))::text as keys`, [name])
  return row?.keys ? Number(row.keys) : null
}
