import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

import type { Bench } from '../bench.ts'
// In your own project: from 'pgtally'
import { createTally } from '../../../src/index.ts'
import type { Tally } from '../../../src/index.ts'
import { prepare } from '../clients.ts'
import { inTurn } from '../contest.ts'
import { drain } from '../methods/tally.ts'
import type { Metric } from '../results.ts'
import type { Scenario } from './scenario.ts'

const keys = 10_000
const transactions = 1000

const metrics: Metric[] = [
  { key: 'forwarded', title: 'events/s forwarded', ratio: true },
  { key: 'counted', title: 'and counted there' },
]

interface Target {
  pool: pg.Pool
  tally: Tally
}

/** A backlog of a million events, from a queue to the counts in another database; beside it the bare statements, without any care. */
export const forward: Scenario = {
  name: 'forward',
  description: 'a backlog of events on 10,000 keys to a counter in another database of the server',
  async run(bench) {
    const { tally, divisor } = bench
    const events = 1_000_000 / divisor
    await tally.createQueue('likes', { rotationPeriodMs: 3_600_000 })
    return withTarget(bench, async (target) => {
      await target.pool.query('create table counts (key bigint primary key, value bigint not null)')
      const ways = [
        { name: 'bare GROUP BY here, INSERT ON CONFLICT there', forward: () => bare(bench, target) },
        { name: 'pgtally', forward: () => byTally(bench, target) },
        { name: 'pgtally, batches of 10,000', forward: () => byTally(bench, target, 10_000) },
      ]
      const { rows, failed } = await inTurn(bench, 'forward', ways, metrics, async (way) => {
        await emit(bench, events)
        const began = performance.now()
        const { count, forwardedAt } = await way.forward()
        const rate = (at: number) => events / ((at - began) / 1000)
        const countedAt = performance.now()
        if ((await count()) !== events) throw new Error(`${await count()} of ${events} events were counted`)
        return { forwarded: rate(forwardedAt), counted: rate(countedAt) }
      })
      const title = `Events forwarded per second to another database, ${events.toLocaleString('en-US')} events of ${transactions.toLocaleString('en-US')} transactions on ${keys.toLocaleString('en-US')} keys`
      return [{ id: 'forward', title, metrics, rows, failed, notes: ['Both databases, the forward and what adds up in the end share the machine. Each time every event was counted.'] }]
    })
  },
}

interface Forwarded {
  forwardedAt: number
  count(): Promise<number>
}

const sum = async (pool: pg.Pool, table: string) => Number((await pool.query<{ n: string }>(`select coalesce(sum(value), 0)::text as n from ${table}`)).rows[0]?.n)

async function bare({ pool }: Bench, target: Target): Promise<Forwarded> {
  await target.pool.query('truncate counts')
  const { rows } = await pool.query<{ keys: string; sums: string }>(`select array_agg(key)::text as keys, array_agg(sum)::text as sums from (select ev_key as key, sum(ev_delta::int) from ${await events({ pool })} group by 1) s`)
  await target.pool.query('insert into counts as c select * from unnest($1::bigint[], $2::bigint[]) on conflict (key) do update set value = c.value + excluded.value', [rows[0]?.keys, rows[0]?.sums])
  return { forwardedAt: performance.now(), count: () => sum(target.pool, 'counts') }
}

let rounds = 0

/** With a consumer and a counter that have seen nothing yet, and so no rows either. */
async function byTally({ pool, tally }: Bench, target: Target, maxEvents?: number): Promise<Forwarded> {
  const name = `round ${++rounds}`
  await target.tally.createCounter(name, {})
  // It begins with what the events' transactions have left.
  await tally.queue('likes').register(name)
  await pool.query(`select pgtally.seek('likes', $1, '-infinity')`, [name])
  const consumer = tally.forward({ queue: 'likes', name, to: target.tally.counter(name), maxEvents })
  const isDone = async () => (await pool.query<{ done: boolean }>(`select not pgtally.due_batch('likes', $1) and not exists (select from pgtally.batch where finished_at is null) as done`, [name])).rows[0]?.done
  while (!(await isDone())) await sleep(5)
  const forwardedAt = performance.now()
  await consumer.stop()
  await drain(target.tally)
  await tally.queue('likes').unregister(name)
  const { rows } = await target.pool.query<{ table: string }>('select target_table::text as table from pgtally.counter where name = $1', [name])
  return { forwardedAt, count: () => sum(target.pool, rows[0]?.table ?? '') }
}

const events = async ({ pool }: Pick<Bench, 'pool'>) => (await pool.query<{ name: string }>(`select pgtally.event_table('likes')::text as name`)).rows[0]?.name

async function emit(bench: Bench, count: number): Promise<void> {
  const table = await events(bench)
  await bench.pool.query(`truncate ${table}`)
  await prepare(
    bench,
    `do $$ begin
      for n in 1..${transactions} loop
        insert into ${table} (ev_key, ev_delta) select 1 + floor(random() * ${keys}), 1 from generate_series(1, ${count / transactions});
        commit;
      end loop;
    end $$`,
  )
}

/** In a database of its own on the same server. */
async function withTarget<T>({ pool: source, connectionString }: Bench, work: (target: Target) => Promise<T>): Promise<T> {
  const url = new URL(connectionString)
  url.pathname += '_target'
  const drop = () => source.query(`drop database if exists ${url.pathname.slice(1)} with (force)`)
  await drop()
  await source.query(`create database ${url.pathname.slice(1)}`)
  const pool = new pg.Pool({ connectionString: url.href })
  pool.on('error', () => {})
  try {
    const tally = createTally({ pool })
    await tally.install()
    return await work({ pool, tally })
  } finally {
    await pool.end()
    await drop()
  }
}
