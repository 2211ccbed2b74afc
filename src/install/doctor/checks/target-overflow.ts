import { defineCheck } from '../check.ts'

interface Row {
  counter: string
  column: string
  type: string
  largest: number | null
  limit: number
  foundBy: 'index' | 'sample'
  alter: string
}

const nearly = 0.9
const half = 0.5

/** Targets of integer or smallint that grow full. A large table is not read: see target_headroom(). */
export const targetOverflow = defineCheck<Row>()({
  name: 'room in integer targets',
  codes: { TARGET_NEARLY_FULL: 'error', TARGET_HALF_FULL: 'warning' },
  needsSchema: true,
  query: ({ schema }) => `
    select counter, format('%s.%I', target, target_column) as column, type, largest, limit_value as "limit", found_by as "foundBy",
      format('ALTER TABLE %s ALTER COLUMN %I TYPE bigint;', target, target_column) as alter
    from ${schema}.target_headroom()`,
  find: (rows) =>
    rows
      .filter(({ largest, limit }) => (largest ?? 0) >= half * limit)
      .map(({ counter, column, type, largest, limit, foundBy, alter }) => {
        const share = Math.floor((100 * (largest ?? 0)) / limit)
        const read = foundBy === 'index' ? 'the largest' : 'a count that was found in statistics or among the newest events; there may be larger ones'
        return {
          code: share >= 100 * nearly ? 'TARGET_NEARLY_FULL' : 'TARGET_HALF_FULL',
          subject: { kind: 'counter', name: counter },
          problem: `A count in ${column} is ${(largest ?? 0).toLocaleString('en-US')} (${read}), ${share} % of what ${type} can hold. Beyond that its events wait, with an error.`,
          remedy: [
            { advice: 'This writes the whole table anew, under a lock that stops reads and writes meanwhile. Events wait, none is lost:' },
            { sql: alter },
            { advice: 'Where that takes too long: add a bigint column, create a counter for that (docs/shadow-mode.md), and switch over.' },
          ],
        }
      }),
})
