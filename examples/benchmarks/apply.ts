import { print, printRates } from './bench.ts'
import type { Bench } from './bench.ts'

const events = 1_000_000
const transactions = 1000

/** A backlog of a million events, from the event table to committed counters; beside it the bare statement that does only that. */
export async function benchApply(bench: Bench): Promise<void> {
  const { pool, tally } = bench
  await pool.query(`
    create table wide (id bigint primary key, title text, like_count bigint not null default 0) with (fillfactor = 50);
    insert into wide select n, repeat('x', 100) from generate_series(1, 100000) n`)
  await pool.query('vacuum analyze wide')
  const target = { table: 'wide', key: 'id', column: 'like_count' }
  await tally.createCounter('applied', { target })
  for (const keys of [1, 100_000]) {
    const rates = new Map<string, number[]>([
      ['bare GROUP BY and UPDATE', []],
      ['pgtally', []],
    ])
    for (let repetition = 1; repetition <= bench.repetitions; repetition++) {
      const queue = await emit(bench, keys)
      const bare = await seconds(async () => {
        await pool.query(`
          update wide set like_count = like_count + sum
          from (select ev_key, sum(ev_delta::int) as sum from pgtally.${queue} group by ev_key) s where id = ev_key`)
      })
      rates.get('bare GROUP BY and UPDATE')?.push(events / bare)
      await pool.query('vacuum wide')
      await pool.query('checkpoint')
      const applied = await seconds(async () => {
        const result = await tally.drain()
        if (result.events !== events) throw new Error(`${result.events} events were applied, not ${events}`)
      })
      rates.get('pgtally')?.push(events / applied)
      await pool.query('vacuum wide')
      print(`  ${repetition}/${bench.repetitions} ${keys} keys: bare ${bare.toFixed(2)} s, pgtally ${applied.toFixed(2)} s`)
    }
    printRates(`Events applied per second, ${events.toLocaleString('en-US')} events of ${transactions} transactions, ${keys.toLocaleString('en-US')} keys`, 'events/s', rates)
  }
}

/** Fills the queue and returns the name of its event table, which holds nothing else. */
async function emit({ pool }: Bench, keys: number): Promise<string> {
  const { rows } = await pool.query<{ id: number }>(`select queue_id as id from pgtally.queue where name = 'applied'`)
  const queue = `event_${rows[0]?.id}`
  await pool.query(`truncate pgtally.${queue}`)
  await pool.query(`
    do $$ begin
      for n in 1..${transactions} loop
        insert into pgtally.${queue} (ev_key, ev_delta, ev_slot) select 1 + floor(random() * ${keys}), 1, 0 from generate_series(1, ${events / transactions});
        commit;
      end loop;
    end $$`)
  await pool.query('checkpoint')
  return queue
}

async function seconds(work: () => Promise<void>): Promise<number> {
  const began = performance.now()
  await work()
  return (performance.now() - began) / 1000
}
