import { setTimeout as sleep } from 'node:timers/promises'

import type { Pool } from 'pg'

import { query } from '../executor.ts'
import type { Row } from '../executor.ts'
import { inTransaction } from '../transaction.ts'

/** The counts of a key in one snapshot, where `source` is not `stored + carried + pending`. */
export interface Drift {
  key: string
  /** Which time bucket or decayed score it is, such as `bucket of 01:00:00 from 2026-01-31 10:00:00+00`, or what waits for the scores until its time comes (`scores to come at …`), or `ranking`; not there for the count itself. */
  part?: string
  /** Rows of the source, or their sum; or the column that the counter was held against. */
  source: number
  /** In the target. */
  stored: number
  /** Taken from the queue and not added yet. */
  carried: number
  /** In the queue. */
  pending: number
  /** `source - (stored + carried + pending)`. */
  drift: number
}

/** What was compared. */
export interface Measurement {
  counter: string
  checkedKeys: number
  driftingKeys: number
  /** The first thousand drifting keys. */
  drifts: Drift[]
}

export interface MeasureProgress {
  counter: string
  checkedKeys: number
  driftingKeys: number
  /** About how many keys there are, by the server's statistics; null where it has none. */
  estimatedKeys: number | null
}

export interface MeasureOptions {
  /** Told after each range of keys. */
  onProgress?: ((progress: MeasureProgress) => void) | undefined
  /** Ends it with the signal's reason, between two ranges of keys. */
  signal?: AbortSignal | undefined
}

/** A row of the SQL functions that measure, as JSON. */
export interface MeasuredRange {
  last_key?: string | null
  checked_keys: number
  drifting_keys: number
  drifting?: (Record<'key' | 'source' | 'stored' | 'carried' | 'pending' | 'drift', string> & { part?: string })[]
}

const listedDrifts = 1000
// Long enough that the time goes to counting, short enough that a snapshot holds back nothing.
const rangeMs = 250
const firstRangeKeys = 1000
const longestRangeKeys = 100_000
const restsPerRange = 4

/** Calls a SQL function that returns one row, in a transaction of its own. */
export async function callMeasuring(pool: Pool, call: string, values: readonly unknown[]): Promise<MeasuredRange> {
  // As JSON text, which no type parser of the caller's changes.
  const [row] = await inTransaction(pool, (client) => query<Row & { result: string }>(client, `select row_to_json(m)::text as result from ${call} m`, values))
  return JSON.parse(row?.result ?? '') as MeasuredRange
}

/**
 * Measures range by range, of as many keys as take about a quarter of a second. `next` is given the last key of the range before.
 * `into`: what to add it to. `gently`: rests after each range for four times as
 * long as that took, so that writers lose at most a fifth of a core.
 */
export async function measureRanges(
  counter: string,
  estimatedKeys: number | null,
  { onProgress, signal, gently, into: measurement = nothingMeasured(counter) }: MeasureOptions & { gently: boolean; into?: Measurement },
  next: (after: string | null, maxKeys: number) => Promise<MeasuredRange>,
): Promise<Measurement> {
  let after: string | null = null
  let maxKeys = firstRangeKeys
  do {
    signal?.throwIfAborted()
    const startedAt = performance.now()
    const range = await next(after, maxKeys)
    const took = performance.now() - startedAt
    addTo(measurement, range)
    onProgress?.({ counter, checkedKeys: measurement.checkedKeys, driftingKeys: measurement.driftingKeys, estimatedKeys })
    maxKeys = Math.round(Math.min(Math.max(maxKeys * Math.min(rangeMs / took, 4), 1), longestRangeKeys))
    after = range.last_key ?? null
    // When it is aborted meanwhile, the signal itself says why.
    if (gently && after !== null) await sleep(took * restsPerRange, undefined, { signal }).catch(() => {})
  } while (after !== null)
  return measurement
}

export function nothingMeasured(counter: string): Measurement {
  return { counter, checkedKeys: 0, driftingKeys: 0, drifts: [] }
}

export function measurementOf(counter: string, range: MeasuredRange): Measurement {
  const measurement = nothingMeasured(counter)
  addTo(measurement, range)
  return measurement
}

function addTo(measurement: Measurement, { checked_keys, drifting_keys, drifting = [] }: MeasuredRange): void {
  measurement.checkedKeys += checked_keys
  measurement.driftingKeys += drifting_keys
  for (const found of drifting.slice(0, listedDrifts - measurement.drifts.length)) {
    measurement.drifts.push({
      key: found.key,
      ...(found.part === undefined ? {} : { part: found.part }),
      source: Number(found.source),
      stored: Number(found.stored),
      carried: Number(found.carried),
      pending: Number(found.pending),
      drift: Number(found.drift),
    })
  }
}
