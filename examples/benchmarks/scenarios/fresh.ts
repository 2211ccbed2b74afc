import { prepare } from '../clients.ts'
import type { Metric, Result, Row } from '../results.ts'
import type { Scenario } from './scenario.ts'

const posts = 100_000
const reads = 500

const metrics: Metric[] = [
  { key: 'fresh', title: 'fresh, ms', digits: 2 },
  { key: 'stored', title: 'stored, ms', digits: 2 },
]

/** The time of a fresh read of one key beside one of the stored count, by the number of pending events. */
export const fresh: Scenario = {
  name: 'fresh',
  description: 'a fresh read of one key, by the number of pending events',
  async run(bench): Promise<Result[]> {
    const { pool, tally, divisor, signal, progress } = bench
    await pool.query(`
      create table posts (id bigint primary key, like_count bigint not null default 0) with (fillfactor = 50);
      insert into posts (id) select generate_series(1, ${posts});
      create table likes (post_id bigint not null, user_id bigint generated always as identity);
      create index on likes (post_id)`)
    await tally.createCounter('fresh', { source: { table: 'likes', key: 'post_id' }, target: { table: 'posts', key: 'id', column: 'like_count' } })
    const counter = tally.counter<number>('fresh')
    const rows: Row[] = []
    for (const [where, post] of [
      ['of other keys', `2 + floor(random() * ${posts - 1})`],
      ['of that key', '1'],
    ] as const) {
      for (const pending of [0, 1000, 10_000]) {
        signal.throwIfAborted()
        await tally.drain()
        // One event for each like, as single likes are.
        await prepare(
          bench,
          `do $$ begin
            for n in 1..${pending} loop
              insert into likes (post_id) values (${post});
              commit;
            end loop;
          end $$`,
        )
        const samples = { fresh: [] as number[], stored: [] as number[] }
        for (let read = 0; read < reads / divisor; read++) {
          for (const kind of ['stored', 'fresh'] as const) {
            const began = performance.now()
            await counter.get(1, { fresh: kind === 'fresh' })
            samples[kind].push(performance.now() - began)
          }
        }
        const name = `${pending.toLocaleString('en-US')} pending events ${where}`
        rows.push({ name, samples })
        progress(`fresh: ${name}: done`)
      }
    }
    return [{ id: 'fresh', title: `Time to read one count from a pool, ${reads / divisor} reads each`, metrics, rows }]
  },
}
