import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

import type { Bench } from './bench.ts'

const connections = 16

/** Sends likes on time, not as soon as the last one is through, so a slow moment is not hidden by sending less; until `signal` is aborted. Returns how many went through. */
export async function paceLikes({ connectionString }: Bench, likesPerSecond: number, like: (client: pg.Client) => Promise<unknown>, signal: AbortSignal): Promise<number> {
  const clients = await Promise.all(
    Array.from({ length: connections }, async () => {
      const client = new pg.Client({ connectionString })
      await client.connect()
      return client
    }),
  )
  const began = performance.now()
  let sent = 0
  await Promise.all(
    clients.map(async (client) => {
      while (!signal.aborted) {
        const early = began + (sent++ / likesPerSecond) * 1000 - performance.now()
        if (early > 0) await sleep(early)
        await like(client)
      }
    }),
  )
  await Promise.all(clients.map((client) => client.end()))
  return sent
}

export const posts = 100_000
export const likes = 10_000_000

/** Ten million likes of 100,000 posts, the first of them liked most; made once, by whichever benchmark comes first. */
export async function createLikes({ pool }: Bench): Promise<void> {
  const { rows } = await pool.query(`select to_regclass('big_likes') is not null as there`)
  if ((rows[0] as { there: boolean }).there) return
  await pool.query(`
    create table big_posts (id bigint primary key, title text, like_count bigint not null default 0) with (fillfactor = 50);
    insert into big_posts select n, repeat('x', 100) from generate_series(1, ${posts}) n;
    create table big_likes (post_id bigint not null, user_id bigint not null, created_at timestamptz not null default now());
    insert into big_likes select 1 + floor(${posts} * power(random(), 3)), n from generate_series(1, ${likes}) n;
    alter table big_likes add primary key (post_id, user_id);
    create sequence big_users start ${likes + 1} cache 100`)
  await pool.query('vacuum analyze big_posts')
  await pool.query('vacuum analyze big_likes')
  await pool.query('checkpoint')
}

/** One like of a random post, spread as the others are. */
export function likeSomething(client: pg.Client): Promise<unknown> {
  return client.query(`insert into big_likes (post_id, user_id) values ($1, nextval('big_users'))`, [1 + Math.floor(posts * Math.random() ** 3)])
}

export const likesCounter = {
  source: { table: 'big_likes', key: 'post_id' },
  target: { table: 'big_posts', key: 'id', column: 'like_count' },
}
