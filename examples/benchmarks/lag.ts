import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

import { print, quantile, startWorker } from './bench.ts'
import type { Bench } from './bench.ts'
import { paceLikes } from './load.ts'

const likesPerSecond = 5000
const posts = 100_000
const probe = 0

/** The time from the commit of a like to a stored count that includes it, with a worker at its defaults. */
export async function benchLag(bench: Bench): Promise<void> {
  const { pool, tally } = bench
  await pool.query(`
    create table lag_posts (id bigint primary key, like_count bigint not null default 0) with (fillfactor = 50);
    insert into lag_posts (id) select generate_series(0, ${posts});
    create table lag_likes (post_id bigint not null references lag_posts, user_id bigint not null, primary key (post_id, user_id));
    create sequence lag_users cache 100`)
  await tally.createCounter('lag', { source: { table: 'lag_likes', key: 'post_id' }, target: { table: 'lag_posts', key: 'id', column: 'like_count' } })
  await using worker = await startWorker(bench)

  const duration = bench.seconds * 4000
  const began = performance.now()
  const like = (client: pg.Client) => {
    const post = Math.random() < 0.5 ? 1 : 1 + Math.floor(Math.random() * posts)
    return client.query(`insert into lag_likes values ($1, nextval('lag_users'))`, [post])
  }
  const [sent, lags] = await Promise.all([paceLikes(bench, likesPerSecond, like, AbortSignal.timeout(duration)), probeLag(bench, began + duration)])
  if (worker.exitCode !== null) throw new Error('The worker ended before its time')
  const ms = (q: number) => `${quantile(lags, q).toFixed(0)} ms`
  print(`Lag at ${Math.round(sent / (duration / 1000))} likes/s (asked for: ${likesPerSecond}), half of them on one post, ${lags.length} samples`)
  print(`  median ${ms(0.5)}, p95 ${ms(0.95)}, p99 ${ms(0.99)}, max ${ms(1)}\n`)
}

/** Likes a post that nobody else likes, and looks until its count includes that. */
async function probeLag({ connectionString }: Bench, end: number): Promise<number[]> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  const lags: number[] = []
  for (let likes = 1; performance.now() < end; likes++) {
    await client.query(`insert into lag_likes values ($1, nextval('lag_users'))`, [probe])
    const committed = performance.now()
    for (let stored = 0; stored < likes; ) {
      const { rows } = await client.query<{ n: number }>('select like_count::int as n from lag_posts where id = $1', [probe])
      stored = rows[0]?.n ?? 0
      if (stored < likes) await sleep(1)
    }
    lags.push(performance.now() - committed)
    await sleep(Math.random() * 50)
  }
  await client.end()
  return lags
}
