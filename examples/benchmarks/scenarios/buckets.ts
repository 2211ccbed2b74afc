import type { CounterDefinition } from '../../../src/index.ts'
import type { Bench } from '../bench.ts'
import { connections } from '../clients.ts'
import { inTurn } from '../contest.ts'
import { hotPost } from '../distributions.ts'
import { bare } from '../methods/bare.ts'
import { drain, oneHalfLife, tallyTimed, tallyTrigger, threeWidths } from '../methods/tally.ts'
import type { Metric, Result } from '../results.ts'
import { allEvents, allKeys, counterId, emit, eventTable } from './apply.ts'
import { compareLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

/** What is kept beside the counts, in words and as a part of a definition. */
const plain = { name: 'pgtally', kept: {} }
const widths = { name: 'with buckets of a minute, an hour and a day', kept: threeWidths }
const halfLife = { name: 'with a half-life of 6 hours', kept: oneHalfLife }
const both = { name: 'with the three widths and the half-life', kept: { ...threeWidths, ...oneHalfLife } }

/** When the events happened, in words and in SQL. */
const justNow = { id: 'now', title: 'that have just happened', time: 'clock_timestamp()' }
const lastHour = { id: 'hour', title: 'of the last hour', time: `clock_timestamp() - random() * interval '1 hour'` }

const metrics: Metric[] = [
  { key: 'empty', title: 's, into empty tables', digits: 2, ratio: true },
  { key: 'filled', title: 's, as many again', digits: 2, ratio: true },
]

/** What time buckets and decayed scores add to applying, and a time column to a like. */
export const buckets: Scenario = {
  name: 'buckets',
  description: 'a backlog applied with time buckets and decayed scores, and without; likes with a time column, and without',
  async run(bench) {
    const results: Result[] = []
    for (const target of ['user', 'own'] as const) {
      for (const happened of [justNow, lastHour]) {
        results.push(await compareApplying(bench, target, happened))
      }
    }
    const writing = await compareLikes(bench, {
      id: 'buckets-writing',
      title: `Likes per second with a time column, ${hotPost.name}, ${connections} connections, no foreign key`,
      methods: [bare, tallyTrigger, tallyTimed],
      distribution: hotPost,
      foreignKey: false,
    })
    return [...results, writing]
  },
}

async function compareApplying(bench: Bench, target: 'user' | 'own', happened: typeof justNow): Promise<Result> {
  const id = `buckets-${target}-${happened.id}`
  const events = allEvents / bench.divisor
  const keys = allKeys / bench.divisor
  const counters: Counter[] = []
  // What each part costs is told once.
  const parts = target === 'user' && happened === justNow ? [widths, halfLife] : []
  for (const [index, { name, kept }] of [plain, ...parts, both].entries()) counters.push({ name, ...(await createCounter(bench, `${target}_${happened.id}_${index}`, target, kept)) })
  const { rows, failed } = await inTurn(bench, id, counters, metrics, async (counter) => {
    await empty(bench, counter)
    const apply = async (times: number) => {
      await emit(bench, counter.queue, events, keys, happened.time)
      const began = performance.now()
      await drain(bench.tally)
      const seconds = (performance.now() - began) / 1000
      await verify(bench, counter, events * times)
      return seconds
    }
    return { empty: await apply(1), filled: await apply(2) }
  })
  for (const { counter } of counters) await bench.tally.dropCounter(counter)
  const count = (n: number) => n.toLocaleString('en-US')
  return { id, title: `Seconds to apply ${count(events)} events ${happened.title} to ${count(keys)} keys of ${target === 'user' ? "a user's table" : "pgtally's own table"}`, metrics, rows, failed }
}

interface Counter {
  name: string
  counter: string
  queue: string
  target: string
  column: string
  /** Its tables of buckets and scores. */
  kept: string[]
  /** Its views of buckets. */
  views: string[]
}

async function createCounter(bench: Bench, counter: string, target: 'user' | 'own', kept: CounterDefinition): Promise<Omit<Counter, 'name'>> {
  const { pool, tally } = bench
  const keys = allKeys / bench.divisor
  if (target === 'user') {
    await pool.query(`
      create table ${counter} (id bigint primary key, title text, like_count bigint not null default 0) with (fillfactor = 50);
      insert into ${counter} select n, repeat('x', 100) from generate_series(1, ${keys}) n`)
  }
  await tally.createCounter(counter, { ...kept, ...(target === 'user' && { target: { table: counter, key: 'id', column: 'like_count' } }) })
  const id = await counterId(bench, counter)
  // So that all rows are there.
  if (target === 'own') await pool.query(`insert into pgtally.count_${id} (key, value) select n, 0 from generate_series(1, ${keys}) n`)
  const { rows } = await pool.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class where relnamespace = 'pgtally'::regnamespace and relkind in ('r', 'p', 'v') and not relispartition and relname ~ '^(recent|buckets?)_${id}(_|$)'`,
  )
  const names = rows.map(({ name }) => name)
  const isView = (name: string) => name.startsWith('pgtally.buckets_')
  return {
    counter,
    queue: await eventTable(bench, counter),
    ...(target === 'user' ? { target: counter, column: 'like_count' } : { target: `pgtally.count_${id}`, column: 'value' }),
    kept: names.filter((name) => !isView(name)),
    views: names.filter(isView),
  }
}

async function empty({ pool }: Bench, { target, column, kept }: Counter): Promise<void> {
  await pool.query(`update ${target} set ${column} = 0`)
  for (const table of kept) await pool.query(`truncate ${table}`)
  for (const table of [target, ...kept]) await pool.query(`vacuum analyze ${table}`)
}

/** Each width must have them all, as the count does. */
async function verify({ pool }: Bench, { target, column, views }: Counter, events: number): Promise<void> {
  for (const sum of [`select sum(${column})::text as n from ${target}`, ...views.map((view) => `select sum(count)::text as n from ${view}`)]) {
    const { rows } = await pool.query<{ n: string }>(sum)
    if (Number(rows[0]?.n) !== events) throw new Error(`${rows[0]?.n} of ${events} events by ${sum}`)
  }
}
