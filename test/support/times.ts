import type { TestDatabase } from './database.ts'
import { applyAll, value, type Session } from './fixtures.ts'

export interface TimedBlog {
  /** The counter, which is also the name of its queue. */
  readonly counter: string
  readonly posts: string
  readonly likes: string
}

export interface TimedOptions {
  keyType?: string
  /** The keys of the posts that there are; default 1 to 10. */
  keys?: readonly string[]
  timeType?: string
  /** Further columns and clauses of the table of likes, such as `, kind text`. */
  likesColumns?: string
  likesClauses?: string
  buckets?: readonly { width: string; retain: string; time_zone?: string }[] | null
  halfLives?: readonly string[] | null
  ranking?: boolean
  /** Arguments of create_counter(), as SQL by name; null for none. */
  rest?: Record<string, string | null>
}

const defaultBuckets = [
  { width: '1 minute', retain: 'forever' },
  { width: '1 hour', retain: 'forever' },
  { width: '1 day', retain: 'forever', time_zone: 'Europe/Berlin' },
]

let blogs = 0

/** Tables posts and likes, where a like has a time (`at`), with a counter that keeps all that can be kept by time. Rows that are there already are not counted yet. */
export async function createTimedBlog(db: TestDatabase, options: TimedOptions = {}): Promise<TimedBlog> {
  const { keyType = 'bigint', keys = Array.from({ length: 10 }, (_, index) => String(index + 1)), timeType = 'timestamptz' } = options
  const { likesColumns = '', likesClauses = '', buckets = defaultBuckets, halfLives = ['1 hour', '7 days'], ranking = true, rest = {} } = options
  const number = ++blogs
  const blog = { counter: `timed_${number}`, posts: `timed_posts_${number}`, likes: `timed_likes_${number}` }
  await db.pool.query(`
    create table ${blog.posts} (id ${keyType} primary key, like_count bigint not null default 0, category integer not null default 0);
    create table ${blog.likes} (id bigint generated always as identity, post_id ${keyType}, at ${timeType}${likesColumns}) ${likesClauses};
    create index on ${blog.likes} (post_id)`)
  await db.pool.query(`insert into ${blog.posts} (id) select k::${keyType} from unnest($1::text[]) k`, [keys])
  const given: Record<string, string | null> = {
    source: `'${blog.likes}'`,
    source_key: `'post_id'`,
    source_time: `'at'`,
    target: `'${blog.posts}'`,
    target_key: `'id'`,
    target_column: `'like_count'`,
    buckets: buckets === null ? null : `'${JSON.stringify(buckets)}'`,
    half_lives: halfLives === null ? null : `'{${halfLives.map((halfLife) => `"${halfLife}"`).join(',')}}'`,
    ranking: String(ranking),
    ...rest,
  }
  await createCounterBySql(db.pool, blog.counter, given)
  return blog
}

/** create_counter() with these arguments, each as SQL; those that are null are left out. */
export async function createCounterBySql(session: Session, name: string, given: Record<string, string | null>): Promise<void> {
  const list = Object.entries(given).flatMap(([argument, sql]) => (sql === null ? [] : [`, ${argument} => ${sql}`]))
  await session.query(`select pgtally.create_counter('${name}'${list.join('')})`)
}

/** Everything is applied: batches, what they have put off, and what they found locked. */
export async function settle(session: Session, counter: string): Promise<void> {
  await applyAll(session, counter)
  while ((await value<number | null>(session, 'select keys from pgtally.apply_packed($1)', [counter])) !== null) continue
  await session.query('select pgtally.apply_carried($1)', [counter])
}

export interface TimeViolation {
  part: string
  key: string
  start: string | null
  expected: string | null
  actual: string | null
}

interface Parts {
  counter_id: number
  buckets: { number: number; unit: string | null; seconds: number; zone: string | null }[]
  trends: { number: number; seconds: number }[]
  ranking: string | null
  target: string
  target_key: string
  target_column: string
  rows: string
  minutes: boolean
}

/**
 * What buckets, scores and ranking have, where it is not what the rows of the source say. With formulas of its own, so that they and those of the engine check each other. To be asked when everything
 * is applied. Likes of the future are in no score (future: those of more than five minutes; tests keep away from that limit).
 */
export async function timeViolations(session: Session, counter: string): Promise<TimeViolation[]> {
  const parts = await value<Parts>(
    session,
    `select json_build_object(
      'counter_id', k.counter_id, 'target', k.target_table::text, 'target_key', quote_ident(k.target_key), 'target_column', quote_ident(k.target_column),
      'ranking', case when k.ranked then case when k.own_target then 'count_' else 'rank_' end || k.counter_id end,
      'rows', format('select %1$I::text as key, %2$s as at, (%3$s)::numeric as delta from %4$s where %1$I is not null and (%5$s)', s.source_key,
        case (select atttypid::regtype::text from pg_attribute where attrelid = s.source_table and attname = s.time_column)
          when 'timestamp without time zone' then format('%I at time zone ''UTC''', s.time_column) else quote_ident(s.time_column) end,
        coalesce(s.sum_expression, '1'), s.source_table, coalesce(s.where_condition, 'true')),
      'minutes', not exists (select from pgtally.bucket b where b.counter_id = k.counter_id and extract(epoch from b.width)::int % 60 <> 0),
      'buckets', (select coalesce(json_agg(json_build_object('number', number, 'zone', time_zone, 'seconds', extract(epoch from width)::bigint,
        'unit', case when width < '1 day' then null when width = '1 day' then 'day' when width = '7 days' then 'week' when width < '1 year' then 'month' else 'year' end)), '[]')
        from pgtally.bucket b where b.counter_id = k.counter_id),
      'trends', (select coalesce(json_agg(json_build_object('number', number, 'seconds', extract(epoch from half_life)::bigint)), '[]') from pgtally.trend t where t.counter_id = k.counter_id))
    from pgtally.counter k join pgtally.consumer c on c.consumer_id = k.counter_id join pgtally.source s using (queue_id) where k.name = $1`,
    [counter],
  )
  // Whole seconds of the years 1 to 9999; others are late.
  const timed = `(select key, date_trunc('${parts.minutes ? 'minute' : 'second'}', at) as at, sum(delta) as delta from (${parts.rows}) r
    where at >= '0001-01-01 00:00:00+00' and at < '10000-01-01 00:00:00+00' group by 1, 2)`
  const queries = parts.buckets.map(({ number, unit, seconds, zone }) => {
    const start = unit === null ? `to_timestamp(floor(extract(epoch from at) / ${seconds}) * ${seconds})` : `date_trunc('${unit}', at at time zone '${zone}') at time zone '${zone}'`
    return `select 'bucket ${number}' as part, key, start::text, e.count::text as expected, a.count::text as actual from
      (select key, ${start} as start, sum(delta) as count from ${timed} t group by 1, 2 having sum(delta) <> 0) e
      full join (select key::text, start, count from pgtally.buckets_${parts.counter_id}_${number} where count <> 0) a using (key, start)
      where e.count is distinct from a.count and start >= (select pgtally.kept_since(b) from pgtally.bucket b where b.counter_id = ${parts.counter_id} and b.number = ${number})`
  })
  for (const { number, seconds } of parts.trends) {
    const ages = (time: string) => `(extract(epoch from ${time}) - n.now) / ${seconds}`
    queries.push(`select 'score ${number}' as part, key, null as start, e.score::text as expected, a.score::text as actual from
      (select key, sum(delta::float8 * case when ${ages('at')} < -490 then 0 else 2 ^ (${ages('at')})::float8 end) as score from ${timed} t, n where at < now() + interval '5 minutes' group by 1) e
      full join (select key::text, score_${number} * case when landmark_${number} - n.now / ${seconds} < -490 then 0 else 2 ^ (landmark_${number} - n.now / ${seconds})::float8 end as score
        from pgtally.recent_${parts.counter_id}, n) a using (key)
      where abs(coalesce(e.score, 0) - coalesce(a.score, 0)) > 1e-6 * greatest(1, abs(e.score))`)
  }
  if (parts.ranking !== null) {
    queries.push(`select 'ranking' as part, coalesce(t.${parts.target_key}, r.key)::text as key, null as start, t.${parts.target_column}::text as expected, r.value::text as actual from ${parts.target} t
      left join pgtally.${parts.ranking} r on r.key = t.${parts.target_key} where coalesce(t.${parts.target_column}, 0) <> coalesce(r.value, 0)`)
    queries.push(`select 'top', coalesce(e.key, a.key), coalesce(e.n, a.n)::text, e.count::text, a.count::text from
      (select row_number() over (order by ${parts.target_column} desc, ${parts.target_key}) as n, ${parts.target_key}::text as key, ${parts.target_column} as count from ${parts.target}
        where ${parts.target_column} > 0 limit 10000) e
      full join (select row_number() over () as n, key, count from pgtally.top('${counter}', 10000)) a on (a.n, a.key, a.count) = (e.n, e.key, e.count) where a.n is null or e.n is null`)
  }
  const { rows } = await session.query<TimeViolation>(`with n as materialized (select extract(epoch from now()) as now) ${queries.join(' union all ')} order by 1, 2, 3`)
  return rows
}

export interface AuditRow {
  key: string
  part: string | null
  source: string
  stored: string
}

/** What the engine's own audit finds. */
export async function auditRows(session: Session, counter: string): Promise<AuditRow[]> {
  return (await session.query<AuditRow>('select key, part, source::text, stored::text from pgtally.audit($1) order by key, part', [counter])).rows
}

/** Compares and corrects everything, as the backfill of a new counter does. */
export async function correctAll(session: Session, counter: string): Promise<void> {
  await session.query(`call pgtally.reconcile('${counter}')`)
}

/** The first of some looks that finds nothing, else the last: where buckets of a second come to their end between two parts of a comparison, it is to be made once more. */
export async function soon(look: () => Promise<unknown[]>): Promise<unknown[]> {
  let found = await look()
  for (let looks = 1; found.length > 0 && looks < 10; looks++) found = await look()
  return found
}

/** Does `work`, which reckons from the bucket of now, once more where it failed and that is another one by then. */
export async function withinOne(session: Session, width: string, work: () => Promise<void>): Promise<void> {
  const bucket = () => value<string>(session, `select date_bin($1, now(), '2000-01-03 00:00:00+00')::text`, [width])
  for (;;) {
    const begun = await bucket()
    try {
      return await work()
    } catch (error) {
      if ((await bucket()) === begun) throw error
    }
  }
}
