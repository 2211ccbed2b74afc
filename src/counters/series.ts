import type { CountOptions } from './count.ts'
import { countOf, read, timeText } from './reading.ts'
import type { ReadingPlace } from './reading.ts'

export interface SeriesOptions extends CountOptions {
  /** That of the buckets to be read: a width of the definition, or one that such a width divides, as `6 hours` where there are buckets of `1 hour`. */
  width: string
  /** The first bucket is the first that begins then or later, and is retained. Default: 60 buckets up to `to`. */
  from?: Date | undefined
  /** The last bucket begins before that. Default: now. */
  to?: Date | undefined
}

/** The count of what happened from `start` on, for the width of the bucket. */
export interface Bucket<N extends number | bigint = number> {
  start: Date
  count: N
}

export async function series(place: ReadingPlace, key: string, { width, from, to, bigint = false }: SeriesOptions): Promise<Bucket<number | bigint>[]> {
  const rows = await read<{ ms: string; count: string }>(
    place,
    `select (extract(epoch from start) * 1000)::text as ms, count::text as count
    from ${place.schema}.series($1::text, $2::text, $3::text::interval, $4::text::timestamptz, $5::text::timestamptz) order by start`,
    [place.name, key, width, from && timeText('from', from), to && timeText('to', to)],
  )
  return rows.map(({ ms, count }) => ({ start: new Date(Number(ms)), count: countOf(place, key, count, bigint) }))
}
