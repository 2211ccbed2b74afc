import { print, quantile } from './bench.ts'
import type { Bench } from './bench.ts'

const posts = 100_000
const reads = 500

/** The time of a fresh read of one key beside one of the stored count, by the number of pending events. */
export async function benchFresh({ pool, tally }: Bench): Promise<void> {
  await pool.query(`
    create table fresh_posts (id bigint primary key, like_count bigint not null default 0) with (fillfactor = 50);
    insert into fresh_posts (id) select generate_series(1, ${posts});
    create table fresh_likes (post_id bigint not null, user_id bigint generated always as identity);
    create index on fresh_likes (post_id)`)
  await tally.createCounter('fresh', { source: { table: 'fresh_likes', key: 'post_id' }, target: { table: 'fresh_posts', key: 'id', column: 'like_count' } })
  const counter = tally.counter<number>('fresh')
  for (const [where, post] of [
    ['of other keys', `2 + floor(random() * ${posts - 1})`],
    ['of that key', '1'],
  ] as const) {
    for (const pending of [0, 1000, 10_000]) {
      await tally.drain()
      // One event for each like, as single likes are.
      await pool.query(`
        do $$ begin
          for n in 1..${pending} loop
            insert into fresh_likes (post_id) values (${post});
            commit;
          end loop;
        end $$`)
      const times = new Map<string, number[]>([
        ['stored', []],
        ['fresh', []],
      ])
      for (let read = 0; read < reads; read++) {
        for (const [kind, list] of times) {
          const began = performance.now()
          await counter.get(1, { fresh: kind === 'fresh' })
          list.push(performance.now() - began)
        }
      }
      const describe = (kind: string) => `${kind} ${[0.5, 0.95].map((q) => quantile(times.get(kind) ?? [], q).toFixed(2)).join(' / ')} ms`
      print(`Reading one count at ${pending.toLocaleString('en-US')} pending events ${where}, median / p95: ${describe('fresh')}, ${describe('stored')}`)
    }
  }
  print('')
}
