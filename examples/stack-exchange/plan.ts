import type { Vote } from './dump.ts'

/** Votes that are cast (INSERT) or withdrawn (DELETE) in one statement. */
export interface Statement {
  kind: 'cast' | 'withdraw'
  votes: readonly Vote[]
}

export type Transaction = readonly Statement[]

/** Numbers from 0 to 1 that look random; the same for the same seed. */
export type Random = () => number

const withdrawnShare = 0.05

/** Mulberry32, by Tommy Ettinger (public domain): small, and good enough to make up a schedule. */
export function createRandom(seed: number, stream: number): Random {
  let state = (seed + Math.imul(stream, 0x9e3779b9)) | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/**
 * Transactions that cast all of the votes in their order. Most cast one, as users do, some many in one statement. Some votes are
 * withdrawn, in the transaction that cast them or a later one, and cast again, at once or later; some of them more than once.
 * In the end each has been cast once more often than withdrawn.
 */
export function* planTransactions(votes: readonly Vote[], random: Random): Generator<Transaction, void, undefined> {
  let doubtful: Vote[] = []
  let withdrawn: Vote[] = []
  let next = 0
  while (next < votes.length || doubtful.length > 0 || withdrawn.length > 0) {
    const fresh = votes.slice(next, next + transactionSize(random))
    next += fresh.length
    doubtful.push(...chosen(fresh, withdrawnShare, random))

    const changed = chosen(doubtful, 0.3, random)
    doubtful = without(doubtful, changed)
    withdrawn.push(...changed)

    const again = chosen(withdrawn, 0.3, random)
    withdrawn = without(withdrawn, again)
    doubtful.push(...chosen(again, withdrawnShare, random))

    const statements: Statement[] = [
      { kind: 'cast', votes: fresh },
      { kind: 'withdraw', votes: changed },
      { kind: 'cast', votes: again },
    ]
    const transaction = statements.filter((statement) => statement.votes.length > 0)
    if (transaction.length > 0) yield transaction
  }
}

function transactionSize(random: Random): number {
  const kind = random()
  if (kind < 0.6) return 1
  return kind < 0.9 ? 2 + Math.floor(random() * 9) : 11 + Math.floor(random() * 40)
}

function chosen(votes: readonly Vote[], share: number, random: Random): Vote[] {
  return votes.filter(() => random() < share)
}

function without(votes: readonly Vote[], gone: readonly Vote[]): Vote[] {
  return votes.filter((vote) => !gone.includes(vote))
}

/**
 * The events that a statement emits, as the posts that they are for: one for each post and second of time of which the score changes.
 * An up-vote and a down-vote for one post at one time in one statement come to nothing.
 */
export function emittedFor({ votes }: Statement): number[] {
  const changes = new Map<string, { postId: number; change: number }>()
  for (const { postId, type, castAt } of votes) {
    if (type !== 2 && type !== 3) continue
    const second = `${postId} ${castAt?.slice(0, '2011-08-17T20:18:56'.length)}`
    const { change } = changes.get(second) ?? { change: 0 }
    changes.set(second, { postId, change: change + (type === 2 ? 1 : -1) })
  }
  return [...changes.values()].filter(({ change }) => change !== 0).map(({ postId }) => postId)
}
