import type { CountOptions } from './count.ts'
import { countOf, read, scopeText, timeText, wholeNumberText } from './reading.ts'
import type { ListOptions, ReadingPlace } from './reading.ts'

export interface TopOptions extends ListOptions, CountOptions {
  /** Only what was counted in buckets that begin in it: from that long ago, such as `24 hours`, until now, or from one time to before another (default: now). Default: all time. */
  window?: string | { from: Date; to?: Date | undefined } | undefined
}

/** A key and its count. */
export interface KeyCount<N extends number | bigint = number> {
  /** As text, in the server's spelling. */
  key: string
  count: N
}

export async function top(place: ReadingPlace, { limit = 10, window, where, bigint = false }: TopOptions): Promise<KeyCount<number | bigint>[]> {
  const ago = typeof window === 'string'
  const [from, to] = ago ? [window] : window ? [timeText('window.from', window.from), window.to && timeText('window.to', window.to)] : []
  const rows = await read<{ key: string; count: string }>(
    place,
    `select key, count::text as count
    from ${place.schema}.top($1::text, $2::text::int4, ${ago ? 'clock_timestamp() - $3::text::interval' : '$3::text::timestamptz'}, $4::text::timestamptz, $5::text::jsonb)`,
    [place.name, wholeNumberText('limit', limit), from, to, scopeText(where)],
  )
  return rows.map(({ key, count }) => ({ key, count: countOf(place, key, count, bigint) }))
}
