import { countOf, read, scopeText, wholeNumberText } from './reading.ts'
import type { ListOptions, ReadingPlace } from './reading.ts'

export interface TrendingOptions extends ListOptions {
  /** One of those in the definition. Default: the first. */
  halfLife?: string | undefined
  baseline?: undefined
}

/** With what the counts of a window are compared. */
export interface Baseline {
  /** The last so long, such as `1 hour`: a width of the definition's buckets, or one that such a width divides. */
  window: string
  /** So many windows before it say what was to be expected. Default 24. */
  windows?: number | undefined
  /** What came less often in the window is left out: three likes are no trend. Default 10. */
  minCount?: number | undefined
}

export interface SpikeOptions extends ListOptions {
  baseline: Baseline
  halfLife?: undefined
}

export interface TrendingKey {
  /** As text, in the server's spelling. */
  key: string
  /** The count as of now, in which each event weighs half after each half-life. */
  score: number
}

export interface SpikingKey {
  /** As text, in the server's spelling. */
  key: string
  /** How far the count is from what was expected: `(count - expected) / sqrt(expected + 1)`, about the number of standard deviations of what comes at random. */
  score: number
  /** In the last window. */
  count: number
  /** The mean of the windows before. */
  expected: number
}

export async function trending(place: ReadingPlace, { limit = 10, halfLife, where }: TrendingOptions): Promise<TrendingKey[]> {
  const rows = await read<{ key: string; score: string }>(
    place,
    `select key, score::text as score from ${place.schema}.trending($1::text, $2::text::int4, $3::text::interval, $4::text::jsonb)`,
    [place.name, wholeNumberText('limit', limit), halfLife, scopeText(where)],
  )
  return rows.map(({ key, score }) => ({ key, score: Number(score) }))
}

export async function spikes(place: ReadingPlace, { limit = 10, baseline: { window, windows = 24, minCount = 10 }, where }: SpikeOptions): Promise<SpikingKey[]> {
  const rows = await read<{ key: string; score: string; count: string; expected: string }>(
    place,
    `select key, score::text as score, count::text as count, expected::text as expected
    from ${place.schema}.spikes($1::text, $2::text::int4, $3::text::interval, $4::text::int4, $5::text::bigint, $6::text::jsonb)`,
    [place.name, wholeNumberText('limit', limit), window, wholeNumberText('baseline.windows', windows), wholeNumberText('baseline.minCount', minCount), scopeText(where)],
  )
  return rows.map(({ key, score, count, expected }) => ({ key, score: Number(score), count: countOf(place, key, count, false) as number, expected: Number(expected) }))
}
