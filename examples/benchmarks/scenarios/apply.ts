import type pg from 'pg'

import type { Bench } from '../bench.ts'
import { createTally } from '../../../src/index.ts'
import { prepare } from '../clients.ts'
import { inTurn } from '../contest.ts'
import { drain } from '../methods/tally.ts'
import { watchRowLocks } from '../row-locks.ts'
import type { Metric, Result } from '../results.ts'
import type { Scenario } from './scenario.ts'

export const allEvents = 1_000_000
export const allKeys = 100_000
const eventsPerTransaction = 1000

const metrics: Metric[] = [
  { key: 'rate', title: 'events/s', ratio: true },
  { key: 'locked', title: 'longest row lock ms' },
]

export interface Target {
  id: string
  title: string
  keys: number
  counter: string
  table: string
  key: string
  column: string
}

/** A backlog of a million events, from the event table to committed counters; beside it the bare statement that does only that. */
export const apply: Scenario = {
  name: 'apply',
  description: 'a backlog of events to committed counters: one key, 100,000 keys, a table of its own',
  async run(bench) {
    const { pool, tally } = bench
    const manyKeys = await createUserTarget(bench)
    const { keys } = manyKeys
    await tally.createCounter('own', {})
    const own = { counter: 'own', table: `pgtally.count_${await counterId(bench, 'own')}`, key: 'key', column: 'value' }
    // So that all rows are there.
    await pool.query(`insert into ${own.table} (key, value) select n, 0 from generate_series(1, ${keys}) n`)
    const results: Result[] = []
    for (const target of [
      { ...manyKeys, id: 'apply-one-key', title: "one key of a user's table", keys: 1 },
      manyKeys,
      { ...own, id: 'apply-own-table', title: `${keys.toLocaleString('en-US')} keys of pgtally's own table`, keys },
    ]) {
      results.push(await compareApplying(bench, target))
    }
    return results
  },
}

/** A table of a user's with many keys, and a counter on it. */
export async function createUserTarget({ pool, tally, divisor }: Bench): Promise<Target> {
  const keys = allKeys / divisor
  await pool.query(`
    create table wide (id bigint primary key, title text, like_count bigint not null default 0) with (fillfactor = 50);
    insert into wide select n, repeat('x', 100) from generate_series(1, ${keys}) n`)
  const target = { table: 'wide', key: 'id', column: 'like_count' }
  await tally.createCounter('wide', { target })
  return { ...target, counter: 'wide', id: 'apply-many-keys', title: `${keys.toLocaleString('en-US')} keys of a user's table`, keys }
}

async function compareApplying(bench: Bench, target: Target): Promise<Result> {
  const ways = await waysToApply(bench, target)
  const { rows, failed } = await inTurn(bench, target.id, ways, metrics, (way) =>
    withBacklog(bench, target, async (events) => {
      const watch = watchRowLocks(bench, target.table, target.key, target.keys)
      const began = performance.now()
      await way.apply(bench.pool)
      const seconds = (performance.now() - began) / 1000
      return { rate: events / seconds, locked: await watch.stop() }
    }),
  )
  return { id: target.id, title: `Events applied per second, ${describeBacklog(bench)}, ${target.title}`, metrics, rows, failed, bars: true }
}

export async function waysToApply(bench: Bench, { counter, table, key, column }: Target): Promise<{ name: string; apply(pool: pg.Pool): Promise<unknown> }[]> {
  const queue = await eventTable(bench, counter)
  const bare = `update ${table} set ${column} = ${column} + sum from (select ev_key, sum(ev_delta::int) as sum from ${queue} group by ev_key) s where ${key} = ev_key`
  return [
    { name: 'bare GROUP BY and UPDATE', apply: (pool) => pool.query(bare) },
    { name: 'pgtally', apply: (pool) => drain(createTally({ pool })) },
  ]
}

/** Lets `work` apply a new backlog of so many events, each of which must be counted then. */
export async function withBacklog<T>(bench: Bench, { counter, table, column, keys }: Target, work: (events: number) => Promise<T>): Promise<T> {
  const { pool, tally, divisor } = bench
  const events = allEvents / divisor
  await pool.query(`update ${table} set ${column} = 0`)
  await pool.query(`vacuum analyze ${table}`)
  await emit(bench, await eventTable(bench, counter), events, keys)
  const result = await work(events)
  const { rows: sums } = await pool.query<{ n: string }>(`select sum(${column})::text as n from ${table}`)
  if (Number(sums[0]?.n) !== events) throw new Error(`${sums[0]?.n} of ${events} events were counted`)
  // What the bare statement has left there.
  await tally.drain()
  return result
}

export const describeBacklog = ({ divisor }: Bench) => `${(allEvents / divisor).toLocaleString('en-US')} events of ${(allEvents / divisor / eventsPerTransaction).toLocaleString('en-US')} transactions`

/** Writes that many events, of random keys; `time` is SQL for when one of them happened. What was there before must have been applied. */
export async function emit(bench: Bench, queue: string, events: number, keys: number, time = 'clock_timestamp()'): Promise<void> {
  await bench.pool.query(`truncate ${queue}`)
  await prepare(
    bench,
    `do $$ begin
      for n in 1..${events / eventsPerTransaction} loop
        insert into ${queue} (ev_key, ev_delta, ev_slot, ev_time) select 1 + floor(random() * ${keys}), 1, 0, ${time} from generate_series(1, ${eventsPerTransaction});
        commit;
      end loop;
    end $$`,
  )
}

export async function eventTable({ pool }: Bench, name: string): Promise<string> {
  const { rows } = await pool.query<{ id: number }>('select queue_id as id from pgtally.queue where name = $1', [name])
  return `pgtally.event_${rows[0]?.id}`
}

export async function counterId({ pool }: Bench, name: string): Promise<number> {
  const { rows } = await pool.query<{ id: number }>('select counter_id as id from pgtally.counter where name = $1', [name])
  return rows[0]?.id ?? 0
}
