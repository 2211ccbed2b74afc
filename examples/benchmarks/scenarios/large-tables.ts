import type pg from 'pg'

import type { Bench } from '../bench.ts'
import { newUser } from '../clients.ts'
import type { Act } from '../clients.ts'

const posts = 100_000
const allLikes = 10_000_000

export interface LargeTables {
  posts: number
  likes: number
  description: string
  counter: { source: { table: string; key: string }; target: { table: string; key: string; column: string } }
  /** One like of a random post, spread as the others are. */
  likeSomething: Act
}

/** Ten million likes of 100,000 posts, the first of them liked most. */
export async function createLargeTables({ pool, divisor, progress }: Bench): Promise<LargeTables> {
  const likes = allLikes / divisor
  const description = `${likes.toLocaleString('en-US')} likes of ${posts.toLocaleString('en-US')} posts`
  progress(`writing ${description}`)
  await pool.query(`
    create table posts (id bigint primary key, title text, like_count bigint not null default 0) with (fillfactor = 50);
    insert into posts select n, repeat('x', 100) from generate_series(1, ${posts}) n;
    create table likes (post_id bigint not null, user_id bigint not null, created_at timestamptz not null default now());
    insert into likes select 1 + floor(${posts} * power(random(), 3)), -n from generate_series(1, ${likes}) n;
    alter table likes add primary key (post_id, user_id)`)
  await pool.query('vacuum analyze posts')
  await pool.query('vacuum analyze likes')
  await pool.query('checkpoint')
  return {
    posts,
    likes,
    description,
    counter: { source: { table: 'likes', key: 'post_id' }, target: { table: 'posts', key: 'id', column: 'like_count' } },
    async likeSomething(client: pg.Client) {
      await client.query('insert into likes (post_id, user_id) values ($1, $2)', [1 + Math.floor(posts * Math.random() ** 3), newUser()])
      return 1
    },
  }
}
