import type { DumpFile, Post, Vote } from './dump.ts'

/** The widths of the counters' buckets: how much of a date like 2011-08-17T20:18:56.507Z its buckets have in common, and how their starts go on. */
export const widths = {
  '1 hour': { common: '2011-08-17T20'.length, rest: ':00:00Z' },
  '1 day': { common: '2011-08-17'.length, rest: 'T00:00:00Z' },
  '1 month': { common: '2011-08'.length, rest: '-01T00:00:00Z' },
} as const

export type Width = keyof typeof widths

/** What votes add to the score of a post or a tag in one bucket of time. */
export interface Sum {
  of: 'post' | 'tag'
  width: Width
  start: string
  key: string
  score: number
}

/** Above that the sums so far are handed over, so that memory does not grow with the votes. */
const mostSums = 100_000

/**
 * Adds up the votes of a dump by post and tag and by hour, day and month, from the files alone: what the counters' buckets must come to. Several sums may be of
 * the same bucket and key. A vote without a date is in none.
 *
 * The tags of all posts are held in memory.
 */
export async function* sumsOf(dump: { posts: DumpFile<Post>; votes: DumpFile<Vote> }): AsyncGenerator<Sum, void, undefined> {
  const tagsOf = new Map<number, readonly string[]>()
  for await (const { id, tags } of dump.posts.rows()) {
    if (tags.length > 0) tagsOf.set(id, tags)
  }
  const sums = new Map<string, Sum>()
  const add = (of: Sum['of'], key: string, castAt: string, score: number) => {
    for (const [width, { common, rest }] of Object.entries(widths) as [Width, (typeof widths)[Width]][]) {
      const start = castAt.slice(0, common) + rest
      const name = `${of} ${width} ${start} ${key}`
      const sum = sums.get(name)
      if (sum === undefined) sums.set(name, { of, width, start, key, score })
      else sum.score += score
    }
  }
  for await (const { postId, type, castAt } of dump.votes.rows()) {
    if (castAt === null || (type !== 2 && type !== 3)) continue
    const score = type === 2 ? 1 : -1
    add('post', String(postId), castAt, score)
    for (const tag of tagsOf.get(postId) ?? []) add('tag', tag, castAt, score)
    if (sums.size >= mostSums) {
      yield* sums.values()
      sums.clear()
    }
  }
  yield* sums.values()
}
