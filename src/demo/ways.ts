import type { Pool } from 'pg'

import { createTally } from '../tally.ts'
import { celebrity } from './playground.ts'
import type { Playground } from './playground.ts'

/** How far a stored count is behind what has been committed. */
export interface Behind {
  /** Likes and unlikes that are not in it yet. */
  likes: number
  /** Age of the oldest of them. */
  ms: number
}

/** One way of counting the likes of a post. */
export interface Way {
  readonly id: 'count' | 'update' | 'pgtally'
  readonly name: string
  /** What happens on a like and on a read. */
  readonly description: string
  /** Statements with $1 the post, and $2 the user in the first two; each is one round trip and one transaction. */
  readonly like: string
  readonly unlike: string
  readonly read: string
  /** Makes it ready on the playground's new tables. */
  open(pool: Pool): Promise<OpenWay>
}

export interface OpenWay {
  /** Absent where there is nothing that could be behind. */
  sampleBehind?(): Promise<Behind>
  /** After the last like: resolves when the stored count should have all of them. */
  settle(): Promise<void>
  close(): Promise<void>
}

const nothingToDo: OpenWay = { settle: async () => {}, close: async () => {} }

export function demoWays({ schema, tallySchema }: Playground): Way[] {
  const like = `insert into ${schema}.likes (post_id, user_id) values ($1, $2) on conflict do nothing`
  const unlike = `delete from ${schema}.likes where post_id = $1 and user_id = $2`
  // The fairest form: no second round trip while the row is locked. It stays locked until the commit, however it is written.
  const withUpdate = (change: string, delta: string) =>
    `with changed as (${change} returning post_id)
    update ${schema}.posts set like_count = like_count ${delta} from changed where id = changed.post_id`
  const readColumn = `select like_count as count from ${schema}.posts where id = $1`
  return [
    {
      id: 'count',
      name: 'COUNT(*)',
      description: 'a like inserts a row and no more; every read counts all rows',
      like,
      unlike,
      read: `select count(*) as count from ${schema}.likes where post_id = $1`,
      open: async () => nothingToDo,
    },
    {
      id: 'update',
      name: 'UPDATE',
      description: 'a like inserts a row and updates like_count, in one statement',
      like: withUpdate(like, '+ 1'),
      unlike: withUpdate(unlike, '- 1'),
      read: readColumn,
      async open(pool) {
        await pool.query(`update ${schema}.posts set like_count = (select count(*) from ${schema}.likes where post_id = id)`)
        return nothingToDo
      },
    },
    {
      id: 'pgtally',
      name: 'pgtally',
      description: 'a like inserts a row and appends +1 to a queue; a worker adds it up',
      like,
      unlike,
      read: readColumn,
      open: (pool) => openTally(pool, schema, tallySchema),
    },
  ]
}

async function openTally(pool: Pool, schema: string, tallySchema: string): Promise<OpenWay> {
  const tally = createTally({ pool, schema: tallySchema })
  await tally.createCounter('post_likes', {
    source: { table: `${schema}.likes`, key: 'post_id' },
    target: { table: `${schema}.posts`, key: 'id', column: 'like_count' },
  })
  await tally.drain()
  // With its defaults, and in this process as an application would have it: its share of the processor is part of the price.
  const worker = tally.worker()
  return {
    async sampleBehind() {
      const { counters } = await tally.status()
      const [counter] = counters
      if (counter === undefined) throw new Error(`The counter of post ${celebrity} is gone.`)
      return { likes: counter.pendingEvents, ms: counter.lagSeconds * 1000 }
    },
    async settle() {
      const { failed } = await tally.drain()
      for (const { counter, error } of failed) throw new Error(`${counter} could not apply all: ${error}`)
    },
    close: () => worker.stop(),
  }
}
