import type pg from 'pg'

import type { CounterDefinition } from '../../src/index.ts'
import { createTally, type Tally } from '../../src/index.ts'
import { waitFor, type TestDatabase } from './database.ts'

/** Whatever runs a statement: a pool or one session. */
export type Session = Pick<pg.Client, 'query'>

/** Installs pgtally in the database. */
export async function installed(db: TestDatabase): Promise<Tally> {
  const tally = createTally({ pool: db.pool })
  await tally.install()
  return tally
}

export interface Blog {
  /** The counter, which is also the name of its queue. */
  readonly counter: string
  readonly posts: string
  readonly likes: string
}

export interface BlogOptions {
  posts?: number
  /** Instead of `like_count bigint not null default 0`. */
  countColumn?: string
  source?: { where?: string; sum?: string; data?: readonly string[] }
  rest?: Omit<CounterDefinition, 'source' | 'target'>
}

let blogs = 0

/** Tables posts and likes with a counter, under names that no other test of the file uses. */
export async function createBlog(db: TestDatabase, tally: Tally, options: BlogOptions = {}): Promise<Blog> {
  const { posts: postCount = 10, countColumn = 'like_count bigint not null default 0', source, rest } = options
  const number = ++blogs
  const blog = { counter: `likes_${number}`, posts: `posts_${number}`, likes: `likes_${number}` }
  await db.pool.query(`
    create table ${blog.posts} (id bigint primary key, ${countColumn}, title text);
    create table ${blog.likes} (
      id bigint generated always as identity primary key,
      post_id bigint references ${blog.posts} on update cascade on delete cascade,
      kind text default 'like', weight integer default 1);
    insert into ${blog.posts} (id) select generate_series(1, ${postCount})`)
  await tally.createCounter(blog.counter, {
    source: { table: blog.likes, key: 'post_id', ...source },
    target: { table: blog.posts, key: 'id', column: 'like_count' },
    ...rest,
  })
  return blog
}

/** The first column of the first row. */
export async function value<T>(session: Session, sql: string, values: unknown[] = []): Promise<T> {
  const { rows } = await session.query<unknown[]>({ text: sql, values, rowMode: 'array' })
  return rows[0]?.[0] as T
}

/** The values of the first column. */
export async function column<T>(session: Session, sql: string, values: unknown[] = []): Promise<T[]> {
  const { rows } = await session.query<unknown[]>({ text: sql, values, rowMode: 'array' })
  return rows.map(([first]) => first as T)
}

/** Adds `count` likes of a post. */
export async function like(session: Session, { likes }: Blog, post: number, count = 1): Promise<void> {
  await session.query(`insert into ${likes} (post_id) select $1 from generate_series(1, $2)`, [post, count])
}

export interface Applied {
  busy: boolean
  events: string | null
  keys: number | null
  carried: number | null
  cut: boolean
}

/** One batch of a counter; `maxEvents` as the SQL function has it. */
export async function apply(session: Session, counter: string, maxEvents: number | null = 1_000_000): Promise<Applied> {
  const { rows } = await session.query<Applied>('select * from pgtally.apply_batch($1, $2)', [counter, maxEvents])
  if (rows[0] === undefined) throw new Error('apply_batch() gave no row')
  return rows[0]
}

/** Batches until there is nothing to do. */
export async function applyAll(session: Session, counter: string): Promise<void> {
  // A session that has reported an error gives its locks back only then.
  for (let batch = await apply(session, counter); batch.busy || batch.events !== null; ) batch = await apply(session, counter)
}

/** The stored counts by post, those that are 0 left out. */
export async function stored(session: Session, { posts }: Blog): Promise<Record<string, number>> {
  const { rows } = await session.query<{ id: string; n: string }>(`select id, like_count::text n from ${posts} where like_count <> 0 order by id`)
  return Object.fromEntries(rows.map(({ id, n }) => [id, Number(n)]))
}

export interface Invariant {
  key: string
  source: string
  stored: string
  carried: string
  pending: string
}

/**
 * The keys for which source = stored + carried + pending does not hold, in one snapshot. Written anew here, with
 * another formula for what is pending than the engine has, so that the two check each other. Keys without a row in
 * the user's table are left out: their events are dropped.
 */
export async function violations(db: TestDatabase, counter: string, schema = 'pgtally'): Promise<Invariant[]> {
  const client = await db.pool.connect()
  try {
    const { rows } = await client.query<Record<string, string>>(
      `select k.counter_id, q.queue_id, q.key_type, k.target_table::text, quote_ident(k.target_key) target_key, quote_ident(k.target_column) target_column,
        s.source_table::text, quote_ident(s.source_key) source_key, coalesce(s.where_condition, 'true') condition, coalesce(s.sum_expression, '1') delta,
        case when k.on_missing = 'drop' then 'join' else 'left join' end as join
      from ${schema}.counter k join ${schema}.consumer c on c.consumer_id = k.counter_id join ${schema}.queue q using (queue_id)
      join ${schema}.source s using (queue_id) where k.name = $1`,
      [counter],
    )
    const [c] = rows
    if (c === undefined) throw new Error(`There is no counter "${counter}" with a source`)
    // The lock comes before the snapshot, so no slot is emptied that is still pending in it.
    await client.query(`begin isolation level repeatable read; lock table ${schema}.event_${c['queue_id']} in access share mode`)
    const result = await client.query<Invariant>(`
      with position as (select end_boundary from ${schema}.batch where consumer_id = ${c['counter_id']} order by batch_id desc limit 1),
      parts as (
        select ${c['source_key']}::text k, (${c['delta']})::numeric source, 0::numeric stored, 0::numeric carried, 0::numeric pending
          from ${c['source_table']} where ${c['source_key']} is not null and (${c['condition']})
        union all select ${c['target_key']}::text, 0, coalesce(${c['target_column']}, 0), 0, 0 from ${c['target_table']}
        union all select key::text, 0, 0, delta, 0 from ${schema}.carried_${c['counter_id']}
        union all select ev_key::text, 0, 0, 0, ev_delta from ${schema}.event_${c['queue_id']}, position
          where not pg_visible_in_snapshot(ev_txid, end_boundary)
      ),
      sums as (select k as key, sum(source) source, sum(stored) stored, sum(carried) carried, sum(pending) pending from parts group by k)
      select s.* from sums s ${c['join']} ${c['target_table']} t on t.${c['target_key']}::text = s.key
      where s.source is distinct from s.stored + s.carried + s.pending order by s.key`)
    return result.rows
  } finally {
    await client.query('rollback').catch(() => {})
    client.release()
  }
}

export interface CounterRow {
  pending_events: string
  carried_keys: string
  events: string
  batches: string
  dropped_events: string
  last_error: string | null
  source: string | null
  target: string
}

export async function statusOf(session: Session, counter: string): Promise<CounterRow> {
  const { rows } = await session.query<CounterRow>('select * from pgtally.counter_status() where name = $1', [counter])
  if (rows[0] === undefined) throw new Error(`There is no counter "${counter}"`)
  return rows[0]
}

export async function pid(session: Session): Promise<number> {
  return value<number>(session, 'select pg_backend_pid()')
}

/** Waits until that session waits for a lock of another one. */
export async function blocked(db: TestDatabase, backend: number): Promise<void> {
  await waitFor(async () => value<boolean>(db.pool, 'select cardinality(pg_blocking_pids($1)) > 0', [backend]), {
    what: `session ${backend} to be blocked`,
  })
}

/** The settled outcome of a statement, to be asked for later without an unhandled rejection meanwhile. */
export function outcome(promise: Promise<unknown>): Promise<'done' | Error> {
  return promise.then(
    () => 'done' as const,
    (error: Error) => error,
  )
}
