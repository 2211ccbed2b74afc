import type { Pool } from 'pg'

import { copyInto } from './copy.ts'
import type { CopyRow } from './copy.ts'
import { counters } from './counters.ts'
import { widths } from './sums.ts'
import type { Sum } from './sums.ts'

/** All buckets of one width that a counter has or should have. */
export interface BucketComparison {
  counter: string
  width: string
  compared: number
  wrong: number
  /** Some of the wrong ones. */
  examples: { key: string; start: string; counted: number; expected: number }[]
}

const examplesShown = 3

/**
 * Holds every bucket of the counters against sums that were made without them.
 *
 * @param schemas that of this example's tables, and pgtally's
 */
export async function compareBuckets(
  pool: Pool,
  schemas: { tables: string; tally: string },
  sums: AsyncIterable<Sum>,
  signal: AbortSignal,
): Promise<BucketComparison[]> {
  const expected = `${schemas.tables}.expected_sum`
  await pool.query(`create table ${expected} (counter text, width interval, start timestamptz, key text, score bigint)`)
  const client = await pool.connect()
  try {
    await copyInto(client, expected, copyRows(sums), signal)
  } catch (error) {
    client.release(true)
    throw error
  }
  client.release()
  await pool.query(`analyze ${expected}`)

  const comparisons: BucketComparison[] = []
  for (const counter of Object.values(counters)) {
    for (const width of Object.keys(widths)) {
      const { rows: kept } = await pool.query<{ view: string }>(`select view from ${schemas.tally}.bucket_status() where counter = $1 and width = $2::interval`, [counter, width])
      const { rows } = await pool.query<{ comparison: string }>(
        `with both_sides as (
          select key, start, coalesce(b.counted, 0) as counted, coalesce(e.expected, 0) as expected
          from (select key, start, sum(score) as expected from ${expected} where counter = $1 and width = $2::interval group by key, start) e
          full join (select key::text, start, count as counted from ${kept[0]?.view}) b using (key, start)
        ), wrong as (
          select * from both_sides where counted <> expected
        )
        select json_build_object(
          'compared', (select count(*) from both_sides), 'wrong', (select count(*) from wrong),
          'examples', (select coalesce(json_agg(w), '[]') from (
            select key, to_char(start at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"') as start, counted, expected from wrong order by wrong.start, key limit ${examplesShown}) w))::text as comparison`,
        [counter, width],
      )
      comparisons.push({ counter, width, ...(JSON.parse(rows[0]?.comparison ?? '') as Omit<BucketComparison, 'counter' | 'width'>) })
    }
  }
  return comparisons
}

export function describeWrong({ counter, width, compared, wrong, examples }: BucketComparison): string {
  const some = examples.map(({ key, start, counted, expected }) => `${key} from ${start} on has ${counted} instead of ${expected}`).join(', ')
  return `Of ${compared} buckets of ${width} of ${counter}, ${wrong} do not equal the sum of the votes in Votes.xml: ${some}.`
}

async function* copyRows(sums: AsyncIterable<Sum>): AsyncGenerator<CopyRow, void, undefined> {
  for await (const { of, width, start, key, score } of sums) yield [counters[of], width, start, key, score]
}
