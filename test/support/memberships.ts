import { expect } from 'vitest'

import type { Tally } from '../../src/index.ts'
import type { TestDatabase } from './database.ts'
import { value, violations, type Blog } from './fixtures.ts'

let memberships = 0

/** Posts 1 to 10 and likes with one row for each post and user, with a counter, under names that no other test of the file uses. */
export async function createMemberships(db: TestDatabase, tally: Tally, columns = ''): Promise<Blog> {
  const number = ++memberships
  const blog = { counter: `pairs_${number}`, posts: `pair_posts_${number}`, likes: `pair_likes_${number}` }
  await db.pool.query(`
    create table ${blog.posts} (id bigint primary key, like_count bigint not null default 0);
    create table ${blog.likes} (post_id bigint references ${blog.posts}, user_id bigint, ${columns} primary key (post_id, user_id));
    insert into ${blog.posts} (id) select generate_series(1, 10);
    -- Which statements there were, with the number of their rows.
    create table ${blog.likes}_log (operation text, size int, at bigint generated always as identity);
    create function ${blog.likes}_log() returns trigger language plpgsql as $$
    begin
      insert into ${blog.likes}_log select lower(tg_op), count(*) from changed;
      return null;
    end $$;
    create trigger log_insert after insert on ${blog.likes} referencing new table as changed execute function ${blog.likes}_log();
    create trigger log_delete after delete on ${blog.likes} referencing old table as changed execute function ${blog.likes}_log()`)
  await tally.createCounter(blog.counter, { source: { table: blog.likes, key: 'post_id' }, target: { table: blog.posts, key: 'id', column: 'like_count' } })
  return blog
}

/** The sizes of the statements so far. */
export async function statements({ pool }: TestDatabase, { likes }: Blog, operation: 'insert' | 'delete'): Promise<number[]> {
  const { rows } = await pool.query<{ size: number }>(`select size from ${likes}_log where operation = $1 order by at`, [operation])
  return rows.map(({ size }) => size)
}

/** The pairs that are there, as `post:user`. */
export async function pairs({ pool }: TestDatabase, { likes }: Blog): Promise<string[]> {
  return value<string[]>(pool, `select coalesce(array_agg(post_id || ':' || user_id order by post_id, user_id), '{}') from ${likes}`)
}

/** With everything applied every post has the likes that it has rows. */
export async function expectCounted(db: TestDatabase, tally: Tally, blog: Blog): Promise<void> {
  expect(await tally.counter(blog.counter).audit()).toMatchObject({ driftingKeys: 0 })
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await violations(db, blog.counter)).toEqual([])
  expect(await value(db.pool, `select count(*)::int from ${blog.posts} p where like_count <> (select count(*) from ${blog.likes} l where l.post_id = p.id)`)).toBe(0)
}
