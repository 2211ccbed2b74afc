import type pg from 'pg'

import type { Bench } from '../bench.ts'
import { prepare, withClients } from '../clients.ts'
import { drain, oneHalfLife, threeWidths } from '../methods/tally.ts'
import type { Metric, Result } from '../results.ts'
import { eventTable } from './apply.ts'
import { keyAt, uniform, zipf } from './key-spread.ts'
import type { KeySpread } from './key-spread.ts'
import type { Scenario } from './scenario.ts'
import { compareRankings } from './top-writing.ts'

const allKeys = 1_000_000
const allReads = 50
const listed = 100
const hours = 60

const metrics: Metric[] = [{ key: 'ms', title: 'ms', digits: 2 }]

/** Top lists, trending keys, spikes and series of a million keys, beside the obvious statements; and what applying pays for them. */
export const top: Scenario = {
  name: 'top',
  description: 'top lists, trending, spikes and series of 1,000,000 keys, and what a ranking costs when counts are applied',
  async run(bench) {
    const keys = allKeys / bench.divisor
    const results: Result[] = []
    for (const spread of [zipf(keys), uniform(keys)]) {
      results.push(await readLists(bench, keys, spread))
      results.push(await compareRankings(bench, keys, spread))
    }
    return results
  },
}

async function readLists(bench: Bench, keys: number, spread: KeySpread): Promise<Result> {
  const posts = `posts_${spread.id}`
  await fill(bench, posts, keys, spread)
  const reads = Math.max(Math.round(allReads / bench.divisor), 10)
  const call = (list: string) => `select * from pgtally.${list}`
  const obvious = (from: string, where = '') => `select id::text as key, like_count as count from ${from} ${where} order by like_count desc, id limit ${listed}`
  const scope = (column: string) => `scope => '{"${column}": 0}'`
  const busiest = keyAt('1', keys)
  const ways: [name: string, text: string][] = [
    ['ORDER BY without an index', obvious(posts)],
    ['… within 1/3 of the keys', obvious(posts, 'where third = 0')],
    ['… within 1 %', obvious(posts, 'where hundredth = 0')],
    ['… within 0.1 %', obvious(posts, 'where thousandth = 0')],
    ['ORDER BY with an index on the count', obvious(`${posts}_indexed`)],
    ['top', call(`top('${posts}', ${listed})`)],
    ['top within 1/3 of the keys', call(`top('${posts}', ${listed}, ${scope('third')})`)],
    ['top within 1 %', call(`top('${posts}', ${listed}, ${scope('hundredth')})`)],
    ['top within 0.1 %', call(`top('${posts}', ${listed}, ${scope('thousandth')})`)],
    ['top of an hour', call(`top('${posts}', ${listed}, now() - interval '1 hour')`)],
    ['top of 24 hours', call(`top('${posts}', ${listed}, now() - interval '24 hours')`)],
    ['trending', call(`trending('${posts}', ${listed})`)],
    ['trending within 1 %', call(`trending('${posts}', ${listed}, ${scope('hundredth')})`)],
    ['spikes of an hour', call(`spikes('${posts}', ${listed}, min_count => 1)`)],
    ['series of 60 hours', call(`series('${posts}', (${busiest})::text, '1 hour')`)],
    ['series of 720 hours', call(`series('${posts}', (${busiest})::text, '1 hour', now() - interval '720 hours')`)],
  ]
  const rows = ways.map(([name]) => ({ name, samples: { ms: [] as number[] } }))
  await withClients(
    bench,
    async ([client]) => {
      if (client === undefined) return
      await verify(client, posts, ways)
      for (let read = 0; read < reads; read++) {
        for (const [index, [, text]] of ways.entries()) {
          bench.signal.throwIfAborted()
          const began = performance.now()
          await client.query(text)
          rows[index]?.samples.ms.push(performance.now() - began)
        }
      }
    },
    1,
  )
  bench.progress(`top: ${spread.title}: done`)
  return { id: `top-${spread.id}`, title: `Time of a list of ${listed} out of ${keys.toLocaleString('en-US')} keys, ${spread.title}, ${reads} reads each`, metrics, rows }
}

/** Counts that are weeks old, and as many likes as there are keys within the last hours; all of them through the queue. */
async function fill(bench: Bench, posts: string, keys: number, { title, count, place }: KeySpread): Promise<void> {
  const { pool, tally, progress } = bench
  progress(`top: ${title}: writing`)
  await pool.query(`
    create table ${posts} (id bigint primary key, third integer, hundredth integer, thousandth integer, like_count bigint not null default 0) with (fillfactor = 50);
    insert into ${posts} select n, n % 3, n % 100, n % 1000 from generate_series(1, ${keys}) n;
    create index on ${posts} (third);
    create index on ${posts} (hundredth);
    create index on ${posts} (thousandth)`)
  await tally.createCounter(posts, { target: { table: posts, key: 'id', column: 'like_count' }, ranking: true, ...threeWidths, ...oneHalfLife })
  const queue = await eventTable(bench, posts)
  const write = (events: string) => prepare(bench, `insert into ${queue} (ev_slot, ev_key, ev_delta, ev_time) select 0, ${events} from generate_series(1, ${keys}) n`)
  await write(`${keyAt('n', keys)}, ${count}, now() - interval '3 days' - random() * interval '20 days'`)
  await write(`${keyAt(place, keys)}, 1, now() - random() * interval '${hours} hours'`)
  await drain(bench.tally)
  await pool.query(`
    create table ${posts}_indexed with (fillfactor = 50) as select * from ${posts};
    create index on ${posts}_indexed (like_count desc)`)
  // As autovacuum would leave it, and nothing of it into the measurement.
  await pool.query('vacuum analyze')
  await pool.query('checkpoint')
}

/** What top() gives must be what ORDER BY gives. */
async function verify(client: pg.Client, posts: string, ways: readonly [name: string, text: string][]): Promise<void> {
  const list = async (text: string) => JSON.stringify((await client.query<{ key: string; count: string }>(text)).rows.map(({ key, count }) => [key, count]))
  const given = new Map(ways)
  for (const [right, asked] of [
    ['ORDER BY without an index', 'ORDER BY with an index on the count'],
    ['ORDER BY without an index', 'top'],
    ['… within 1/3 of the keys', 'top within 1/3 of the keys'],
    ['… within 1 %', 'top within 1 %'],
    ['… within 0.1 %', 'top within 0.1 %'],
  ] as const) {
    if ((await list(given.get(right) ?? '')) !== (await list(given.get(asked) ?? ''))) throw new Error(`${posts}: ${asked} differs from ${right}`)
  }
  for (const [name, text] of ways) {
    const { rowCount } = await client.query(text)
    if (rowCount === 0) throw new Error(`${posts}: ${name} is empty`)
  }
}
