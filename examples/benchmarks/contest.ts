import { setTimeout as sleep } from 'node:timers/promises'

import type { Bench } from './bench.ts'
import { atFullSpeed, newUser } from './clients.ts'
import type { Distribution } from './distributions.ts'
import type { Method, OpenMethod, Tables } from './methods/method.ts'
import type { Process } from './processes.ts'
import { formatNumber } from './report.ts'
import type { Metric, NotRun, Row } from './results.ts'

/** A method with tables of its own, ready to be measured. */
export interface Contestant extends OpenMethod {
  readonly name: string
  readonly tables: Tables
}

export interface Contest extends AsyncDisposable {
  readonly contestants: Contestant[]
  readonly notRun: NotRun[]
}

export interface Ground {
  distribution: Distribution
  /** Whether likes reference posts. */
  foreignKey: boolean
}

const patienceMs = 300_000

let schemas = 0

/** A post that is there beside those of the distribution. */
export const postOfItsOwn = ({ posts }: Distribution) => posts + 1

/** Gives each of the methods its tables. What cannot run here is named in `notRun`. */
export async function openContest(bench: Bench, methods: readonly Method[], ground: Ground): Promise<Contest> {
  const contestants: Contestant[] = []
  const notRun: NotRun[] = []
  for (const method of methods) {
    bench.signal.throwIfAborted()
    const reason = await method.missing?.(bench)
    if (reason !== undefined) {
      notRun.push({ name: method.name, reason })
      bench.progress(`not run: ${method.name}: ${reason}`)
      continue
    }
    const tables = await createTables(bench, ground)
    contestants.push({ ...(await method.open(bench, tables)), name: method.name, tables })
  }
  return {
    contestants,
    notRun,
    async [Symbol.asyncDispose]() {
      // All of them, also when the database is gone already.
      const closed = await Promise.allSettled(contestants.map(({ close }) => close?.()))
      bench.signal.throwIfAborted()
      for (const result of closed) if (result.status === 'rejected') throw result.reason
    },
  }
}

async function createTables({ pool }: Bench, { distribution, foreignKey }: Ground): Promise<Tables> {
  const schema = `method_${++schemas}`
  const tables = { schema, posts: `${schema}.posts`, likes: `${schema}.likes` }
  await pool.query(`
    create schema ${schema};
    create table ${tables.posts} (id bigint primary key, title text not null, like_count bigint not null default 0) with (fillfactor = 50);
    insert into ${tables.posts} select n, repeat('x', 100) from generate_series(1, ${distribution.posts + 1}) n;
    create table ${tables.likes} (
      post_id bigint not null ${foreignKey ? `references ${tables.posts} on delete cascade` : ''}, user_id bigint not null,
      created_at timestamptz not null default now(), primary key (post_id, user_id))`)
  await pool.query(`vacuum analyze ${tables.posts}`)
  return tables
}

/** Likes that nobody measures, by the first of them: the just-in-time compilers and caches of both sides are cold before. */
export async function warmUp(bench: Bench, { contestants: [first] }: Contest, distribution: Distribution): Promise<void> {
  if (first === undefined) return
  await atFullSpeed(bench, async (client) => {
    await first.like(client, distribution.next(), newUser())
    return 1
  })
  await reset(bench, first)
}

/** Without likes again, and with no checkpoint or vacuum to come. */
export async function reset({ pool }: Bench, { tables, reset: resetMethod }: Contestant): Promise<void> {
  await pool.query(`truncate ${tables.likes}`)
  await resetMethod?.()
  await pool.query(`update ${tables.posts} set like_count = 0 where like_count <> 0`)
  await pool.query(`vacuum ${tables.posts}`)
  await pool.query('checkpoint')
}

/**
 * Waits until all of `likes` are counted, with the consumer running or without one, and holds each count against the rows: without that no figure
 * is shown. Returns how long the counts took, in ms.
 */
export async function verify(bench: Bench, contestant: Contestant, likes: number, consumer: Process | undefined): Promise<number> {
  const { name, tables, stored } = contestant
  const ms = stored === undefined ? 0 : await waitUntilCounted(bench, contestant, likes, consumer)
  const { rows } = await bench.pool.query<{ n: number; wrong: number }>(
    `select coalesce(sum(n), 0)::int as n, ${stored === undefined ? '0' : '(count(*) filter (where n is distinct from stored))::int'} as wrong
    from (select post_id, count(*) as n from ${tables.likes} group by 1) l ${stored === undefined ? '' : `full join (select post_id, n as stored from (${stored}) s where n <> 0) s using (post_id)`}`,
  )
  if (rows[0]?.n !== likes) throw new Error(`${name} has ${rows[0]?.n} rows, but ${likes} likes went through`)
  if (rows[0].wrong > 0) throw new Error(`${name}: ${rows[0].wrong} counts are wrong`)
  return ms
}

/** The same where nothing has been adding up so far. */
export async function settleAndVerify(bench: Bench, contestant: Contestant, likes: number): Promise<void> {
  const { settle, consume } = contestant
  await using consumer = settle === undefined ? await consume?.() : undefined
  await settle?.()
  await verify(bench, contestant, likes, consumer)
}

/** Looks the less often the longer it takes. */
async function waitUntilCounted({ pool, signal }: Bench, { name, stored }: Contestant, likes: number, consumer: Process | undefined): Promise<number> {
  const began = performance.now()
  for (;;) {
    const { rows } = await pool.query<{ n: string }>(`select coalesce(sum(n), 0)::text as n from (${stored}) s`)
    const elapsed = performance.now() - began
    const counted = Number(rows[0]?.n)
    if (counted === likes) return elapsed
    consumer?.check()
    // Without a consumer nothing more will come.
    if (consumer === undefined || elapsed > patienceMs) throw new Error(`${name} counts ${counted} of ${likes} likes after ${Math.round(elapsed / 1000)} s`)
    await sleep(Math.min(Math.max(elapsed / 20, 5), 250), undefined, { signal })
  }
}

/** Measures each contestant as often as asked for, in turn with the others. Whoever fails or counts wrong has no figures, but a reason. */
export async function inTurn<C extends { name: string }>(
  bench: Bench,
  label: string,
  contestants: readonly C[],
  metrics: readonly Metric[],
  measure: (contestant: C) => Promise<Record<string, number>>,
): Promise<{ rows: Row[]; failed: NotRun[] }> {
  const rows = new Map<C, Row>(contestants.map((contestant) => [contestant, { name: contestant.name, samples: {} }]))
  const failed: NotRun[] = []
  for (let repetition = 1; repetition <= bench.repetitions; repetition++) {
    for (const [contestant, { name, samples }] of rows) {
      bench.signal.throwIfAborted()
      try {
        const figures = await measure(contestant)
        for (const { key } of metrics) if (figures[key] !== undefined) (samples[key] ??= []).push(figures[key])
        const said = metrics.filter(({ key }) => figures[key] !== undefined).map(({ key, title, digits }) => `${formatNumber(figures[key], digits)} ${title}`)
        bench.progress(`${label} ${repetition}/${bench.repetitions} ${name}: ${said.join(', ')}`)
      } catch (error) {
        bench.signal.throwIfAborted()
        const reason = error instanceof Error ? error.message : String(error)
        bench.progress(`${label} ${repetition}/${bench.repetitions} ${name} FAILED: ${reason}`)
        failed.push({ name, reason })
        rows.delete(contestant)
      }
    }
  }
  return { rows: [...rows.values()], failed }
}
