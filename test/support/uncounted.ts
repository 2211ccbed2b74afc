import type { Tally } from '../../src/index.ts'
import { value, type Blog } from './fixtures.ts'
import { waitFor, type TestDatabase } from './database.ts'

/** What a measurement says that has found no drift. */
export const clean = { driftingKeys: 0, drifts: [] }

export interface Unfinished {
  id: string
  reason: string
  after_key: string | null
}

export const unfinished = async (own: TestDatabase, { counter }: Blog): Promise<Unfinished | undefined> => {
  const { rows } = await own.pool.query<Unfinished>(`select reconciliation_id::text as id, reason, after_key from pgtally.reconciliation join pgtally.counter using (counter_id) where name = $1`, [counter])
  return rows[0]
}

export const problems = async (tally: Tally, { counter }: Blog) => (await tally.status()).counters.find(({ name }) => name === counter)?.problems

let gates = 0

/** A condition that is always true, but which holds up whoever looks at the likes of that post until the gate is opened. */
export async function createGate(own: TestDatabase, post: number): Promise<{ where: string; open(): Promise<void>; waiting(): Promise<number> }> {
  const number = ++gates
  await own.pool.query(`create function gate_${number}(bigint) returns boolean immutable language plpgsql as $$
    begin
      if $1 = ${post} then perform pg_advisory_xact_lock_shared(${number}); end if;
      return true;
    end $$`)
  const keeper = await own.connect()
  await keeper.query('select pg_advisory_lock($1)', [number])
  return {
    where: `public.gate_${number}(post_id)`,
    open: async () => {
      await keeper.query('select pg_advisory_unlock($1)', [number])
    },
    waiting: () =>
      waitFor(async () => (await value<number | null>(own.pool, `select pid from pg_locks where locktype = 'advisory' and objid = $1 and not granted and database = (select oid from pg_database where datname = current_database()) limit 1`, [number])) ?? undefined, { what: 'somebody at the gate' }),
  }
}

/** Tables with one like of each post, an index on its key, and no counter yet. */
export async function createUncounted(own: TestDatabase, posts = 10) {
  const number = ++gates
  const blog: Blog = { counter: `uncounted_${number}`, posts: `uncounted_posts_${number}`, likes: `uncounted_likes_${number}` }
  await own.pool.query(`
    create table ${blog.posts} (id bigint primary key, like_count bigint not null default 0);
    create table ${blog.likes} (id bigint generated always as identity primary key, post_id bigint references ${blog.posts} on delete cascade, kind text default 'like', weight integer default 1);
    create index on ${blog.likes} (post_id);
    insert into ${blog.posts} (id) select generate_series(1, ${posts});
    insert into ${blog.likes} (post_id) select id from ${blog.posts}`)
  const definition = (where?: string) => ({ source: { table: blog.likes, key: 'post_id', where }, target: { table: blog.posts, key: 'id', column: 'like_count' } })
  return { blog, definition }
}
