import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

import { createTally, defineCounters } from '../../src/index.ts'
import type { Tally } from '../../src/index.ts'

const posts = 10_000
const users = 100_000_000
const shareOfHotPost = 0.2
const likesForOneUnlike = 10
const remembered = 1000
const longestBacklogMs = 1000

const counters = defineCounters()({
  post_likes: {
    source: { table: 'likes', key: 'post_id' },
    target: { table: 'posts', key: 'id', column: 'like_count' },
    // Short, so that each slot is written and emptied many times in a run.
    rotationPeriodMs: 60_000,
  },
})

export interface Site {
  /** The application's connections. */
  pool: pg.Pool
  /** Another connection or two, on which nothing waits for the application. */
  admin: pg.Pool
  tally: Tally
  end(): Promise<void>
}

/** Posts with a count, likes that refer to them, a counter, and a table that a consumer keeps. */
export async function createSite(connectionString: string, connections: number): Promise<Site> {
  const open = (name: string, max: number) => {
    const pool = new pg.Pool({ connectionString, max, application_name: name, connectionTimeoutMillis: 5000 })
    // A server that crashes takes idle connections with it.
    pool.on('error', () => {})
    return pool
  }
  const pool = open('likes', connections)
  const admin = open('soak', 5)
  await admin.query(`
    create table posts (id bigint primary key, title text not null default '', like_count bigint not null default 0) with (fillfactor = 80);
    insert into posts (id) select generate_series(1, ${posts});
    create table likes (post_id bigint references posts, user_id bigint, primary key (post_id, user_id));
    create table consumed (post_id bigint primary key, likes bigint not null)`)
  const tally = createTally({ pool: admin, counters })
  await tally.install()
  await tally.queue('post_likes').register('soak')
  return {
    pool,
    admin,
    tally,
    async end() {
      await pool.end()
      await admin.end()
    },
  }
}

/** Likes, and an unlike after every tenth, at an even pace until it is told to stop. What the server is not there for is not made up for. */
export class Load {
  likes = 0
  failures = 0
  readonly #ended: Promise<unknown>

  constructor({ pool }: Site, connections: number, likesPerSecond: number, signal: AbortSignal) {
    const intervalMs = 1000 / likesPerSecond
    let dueAt = performance.now()
    const like = async () => {
      const mine: [post: number, user: number][] = []
      while (!signal.aborted) {
        const now = performance.now()
        dueAt = Math.max(dueAt + intervalMs, now - longestBacklogMs)
        if (dueAt > now) await sleep(dueAt - now, undefined, { signal }).catch(() => {})
        const post = Math.random() < shareOfHotPost ? 1 : 1 + Math.floor(Math.random() * posts)
        const user = Math.floor(Math.random() * users)
        try {
          await pool.query('insert into likes values ($1, $2) on conflict do nothing', [post, user])
          this.likes++
          if (mine.push([post, user]) > remembered && this.likes % likesForOneUnlike === 0) {
            await pool.query('delete from likes where (post_id, user_id) = ($1, $2)', mine.splice(Math.floor(Math.random() * remembered), 1)[0])
          }
          mine.splice(0, mine.length - 2 * remembered)
        } catch {
          this.failures++
          await sleep(50)
        }
      }
    }
    this.#ended = Promise.all(Array.from({ length: connections }, like))
  }

  async end(): Promise<void> {
    await this.#ended
  }
}
