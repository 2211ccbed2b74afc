import type { Bench } from '../bench.ts'
import { prepare } from '../clients.ts'
import { inTurn } from '../contest.ts'
import { watchRowLocks } from '../row-locks.ts'
import type { Metric, Result } from '../results.ts'
import type { Scenario } from './scenario.ts'

const allEvents = 1_000_000
const manyKeys = 100_000
const eventsPerTransaction = 1000

const metrics: Metric[] = [
  { key: 'rate', title: 'events/s', ratio: true },
  { key: 'locked', title: 'longest row lock ms' },
]

interface Target {
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
    const { pool, tally, divisor } = bench
    const keys = manyKeys / divisor
    await pool.query(`
      create table wide (id bigint primary key, title text, like_count bigint not null default 0) with (fillfactor = 50);
      insert into wide select n, repeat('x', 100) from generate_series(1, ${keys}) n`)
    await tally.createCounter('wide', { target: { table: 'wide', key: 'id', column: 'like_count' } })
    await tally.createCounter('own', {})
    const wide = { counter: 'wide', table: 'wide', key: 'id', column: 'like_count' }
    const own = { counter: 'own', table: `pgtally.count_${await counterId(bench, 'own')}`, key: 'key', column: 'value' }
    // So that all rows are there.
    await pool.query(`insert into ${own.table} (key, value) select n, 0 from generate_series(1, ${keys}) n`)
    const many = keys.toLocaleString('en-US')
    const results: Result[] = []
    for (const target of [
      { ...wide, id: 'apply-one-key', title: "one key of a user's table", keys: 1 },
      { ...wide, id: 'apply-many-keys', title: `${many} keys of a user's table`, keys },
      { ...own, id: 'apply-own-table', title: `${many} keys of pgtally's own table`, keys },
    ]) {
      results.push(await compareApplying(bench, target))
    }
    return results
  },
}

async function compareApplying(bench: Bench, target: Target): Promise<Result> {
  const { pool, tally, divisor } = bench
  const events = allEvents / divisor
  const { counter, table, key, column } = target
  const queue = `pgtally.event_${await queueId(bench, counter)}`
  const bare = `update ${table} set ${column} = ${column} + sum from (select ev_key, sum(ev_delta::int) as sum from ${queue} group by ev_key) s where ${key} = ev_key`
  const ways = [
    { name: 'bare GROUP BY and UPDATE', apply: () => pool.query(bare) },
    {
      name: 'pgtally',
      async apply() {
        const result = await tally.drain()
        if (result.events !== events) throw new Error(`${result.events} events were applied, not ${events}`)
      },
    },
  ]
  const { rows, failed } = await inTurn(bench, target.id, ways, metrics, async (way) => {
    await pool.query(`update ${table} set ${column} = 0`)
    await pool.query(`vacuum analyze ${table}`)
    await emit(bench, queue, events, target.keys)
    const watch = watchRowLocks(bench, table, key, target.keys)
    const began = performance.now()
    await way.apply()
    const seconds = (performance.now() - began) / 1000
    const locked = await watch.stop()
    const { rows: sums } = await pool.query<{ n: string }>(`select sum(${column})::text as n from ${table}`)
    if (Number(sums[0]?.n) !== events) throw new Error(`${sums[0]?.n} of ${events} events were counted`)
    // What the bare statement has left there.
    await tally.drain()
    return { rate: events / seconds, locked }
  })
  const title = `Events applied per second, ${events.toLocaleString('en-US')} events of ${(events / eventsPerTransaction).toLocaleString('en-US')} transactions, ${target.title}`
  return { id: target.id, title, metrics, rows, failed, bars: true }
}

async function emit(bench: Bench, queue: string, events: number, keys: number): Promise<void> {
  await bench.pool.query(`truncate ${queue}`)
  await prepare(
    bench,
    `do $$ begin
      for n in 1..${events / eventsPerTransaction} loop
        insert into ${queue} (ev_key, ev_delta, ev_slot) select 1 + floor(random() * ${keys}), 1, 0 from generate_series(1, ${eventsPerTransaction});
        commit;
      end loop;
    end $$`,
  )
}

async function queueId({ pool }: Bench, name: string): Promise<number> {
  const { rows } = await pool.query<{ id: number }>('select queue_id as id from pgtally.queue where name = $1', [name])
  return rows[0]?.id ?? 0
}

async function counterId({ pool }: Bench, name: string): Promise<number> {
  const { rows } = await pool.query<{ id: number }>('select counter_id as id from pgtally.counter where name = $1', [name])
  return rows[0]?.id ?? 0
}
