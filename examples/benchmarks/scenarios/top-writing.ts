import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

import { createTally } from '../../../src/index.ts'
import type { Bench } from '../bench.ts'
import { inTurn } from '../contest.ts'
import { drain } from '../methods/tally.ts'
import type { Metric, Result } from '../results.ts'
import { counterId, eventTable } from './apply.ts'
import { keyAt } from './key-spread.ts'
import type { KeySpread } from './key-spread.ts'

const batches = 10
const patienceMs = 60_000

const metrics: Metric[] = [
  { key: 'seconds', title: 's', digits: 2, ratio: true },
  { key: 'walMb', title: 'WAL MB' },
  { key: 'hot', title: 'HOT % of the table', digits: 1 },
  { key: 'rankingHot', title: 'of the ranking', digits: 1 },
  { key: 'indexMb', title: 'MB of indexes' },
]

interface Contestant {
  name: string
  counter: string
  /** The target, and with a ranking its table. */
  tables: string[]
}

/** What it costs to keep the greatest counts findable: by a ranking, by an index on the counted column, not at all. */
export async function compareRankings(bench: Bench, keys: number, spread: KeySpread): Promise<Result> {
  const id = `top-writing-${spread.id}`
  const contestants = [
    await open(bench, keys, spread, { name: 'pgtally', counter: 'bare' }),
    await open(bench, keys, spread, { name: 'with a ranking', counter: 'ranked', ranking: true }),
    await open(bench, keys, spread, { name: 'with an index on the counted column', counter: 'indexed', afterwards: 'create index on indexed (like_count desc)' }),
  ]
  const { rows, failed } = await inTurn(bench, id, contestants, metrics, (contestant) => measure(bench, keys, spread, contestant))
  for (const { counter } of contestants) {
    await bench.tally.dropCounter(counter)
    await bench.pool.query(`drop table ${counter}`)
  }
  const count = (n: number) => n.toLocaleString('en-US')
  return { id, title: `Applying ${batches} batches of ${count(keys / batches)} events to ${count(keys)} keys of a user's table with two other indexes, ${spread.title}`, metrics, rows, failed }
}

async function open(
  bench: Bench,
  keys: number,
  { count }: KeySpread,
  { name, counter, ranking, afterwards }: { name: string; counter: string; ranking?: true; afterwards?: string },
): Promise<Contestant> {
  const { pool, tally, progress } = bench
  progress(`top: writing a table ${name}`)
  await pool.query(`
    create table ${counter} (id bigint primary key, author_id bigint, created_at timestamptz, title text, like_count bigint not null default 0) with (fillfactor = 50);
    insert into ${counter} select n, n % 1000, now() - n * interval '1 second', repeat('x', 100) from generate_series(1, ${keys}) n;
    create index on ${counter} (author_id);
    create index on ${counter} (created_at)`)
  await tally.createCounter(counter, { target: { table: counter, key: 'id', column: 'like_count' }, ranking })
  await write(bench, counter, keys, `${keyAt('n', keys)}, ${count}`)
  await drain(bench.tally)
  if (afterwards !== undefined) await pool.query(afterwards)
  return { name, counter, tables: ranking === undefined ? [counter] : [counter, `pgtally.rank_${await counterId(bench, counter)}`] }
}

async function write(bench: Bench, counter: string, events: number, keysAndDeltas: string): Promise<void> {
  const queue = await eventTable(bench, counter)
  await bench.pool.query(`truncate ${queue}`)
  await bench.pool.query(`insert into ${queue} (ev_slot, ev_key, ev_delta) select 0, ${keysAndDeltas} from generate_series(1, ${events}) n`)
}

async function measure(bench: Bench, keys: number, { place }: KeySpread, { counter, tables }: Contestant): Promise<Record<string, number>> {
  const { pool } = bench
  const queue = await eventTable(bench, counter)
  for (const table of tables) await pool.query(`vacuum analyze ${table}`)
  await pool.query('checkpoint')
  const before = await updates(pool, tables)
  const total = { ms: 0, walBytes: 0, updates: 0 }
  for (let batch = 0; batch < batches; batch++) {
    await write(bench, counter, keys / batches, `${keyAt(place, keys)}, 1`)
    total.updates += await number(pool, `select count(distinct ev_key) from ${queue}`)
    const writtenBefore = await number(pool, walPosition)
    const began = performance.now()
    await drainApart(bench)
    total.ms += performance.now() - began
    total.walBytes += (await number(pool, walPosition)) - writtenBefore
  }
  const after = await updatesBy(bench, tables, (before[0]?.all ?? 0) + total.updates)
  const [hot, rankingHot] = after.map(({ all, hot: without }, index) => (100 * (without - (before[index]?.hot ?? 0))) / (all - (before[index]?.all ?? 0)))
  return {
    seconds: total.ms / 1000,
    walMb: total.walBytes / 2 ** 20,
    ...(hot !== undefined && { hot }),
    ...(rankingHot !== undefined && { rankingHot }),
    indexMb: (await number(pool, `select sum(pg_indexes_size(t)) from unnest('{${tables}}'::regclass[]) t`)) / 2 ** 20,
  }
}

/** On connections that are then closed: so they tell what they have updated. */
async function drainApart({ connectionString }: Bench): Promise<void> {
  const pool = new pg.Pool({ connectionString })
  try {
    await drain(createTally({ pool }))
  } finally {
    await pool.end()
  }
}

interface Updates {
  all: number
  /** Those that wrote no index entry. */
  hot: number
}

async function updates(pool: pg.Pool, tables: readonly string[]): Promise<Updates[]> {
  const { rows } = await pool.query<Updates>(
    `select n_tup_upd::float8 as all, n_tup_hot_upd::float8 as hot from unnest($1::text[]) with ordinality t(name, n) join pg_stat_user_tables s on s.relid = t.name::regclass order by n`,
    [tables],
  )
  return rows
}

/** Once the first table has been updated so often; the server takes a moment to say so. */
async function updatesBy({ pool, signal }: Bench, tables: readonly string[], least: number): Promise<Updates[]> {
  for (const began = performance.now(); performance.now() - began < patienceMs; await sleep(100, undefined, { signal })) {
    const found = await updates(pool, tables)
    if ((found[0]?.all ?? 0) >= least) return found
  }
  throw new Error(`the server does not say that ${tables[0]} was updated ${least} times`)
}

const walPosition = `select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')`

async function number(pool: pg.Pool, text: string): Promise<number> {
  const { rows } = await pool.query<[string]>({ text, rowMode: 'array' })
  return Number(rows[0]?.[0])
}
