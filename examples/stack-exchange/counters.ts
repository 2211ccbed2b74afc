// In your project: 'pgtally'.
import { defineCounters } from '../../src/index.ts'
import { widths } from './sums.ts'

/** The names of the counters, by what they count for. */
export const counters = { post: 'post_score', tag: 'tag_score' } as const

/** The score of each post, in its row, and that of each tag, in pgtally's own table; both by the hour, the day and the month in which a vote was cast, too. */
export function defineScores(schema: string) {
  const score = { where: 'vote_type in (2, 3)', sum: 'case vote_type when 2 then 1 else -1 end', time: 'cast_at' }
  const buckets = Object.keys(widths).map((width) => ({ width, retain: 'forever' }))
  return defineCounters()({
    [counters.post]: {
      source: { table: `${schema}.votes`, key: 'post_id', ...score },
      target: { table: `${schema}.posts`, key: 'id', column: 'score' },
      onMissing: 'drop',
      buckets,
    },
    [counters.tag]: { source: { table: `${schema}.tag_votes`, key: 'tag', ...score }, buckets },
  })
}
