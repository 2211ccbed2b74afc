import { setTimeout as sleep } from 'node:timers/promises'

import { atFullSpeed, connections, withClients } from '../clients.ts'
import type { Bench } from '../bench.ts'
import { inTurn, openContest, reset, verify, warmUp } from '../contest.ts'
import type { Contestant } from '../contest.ts'
import { halfHot } from '../distributions.ts'
import { heldMethods, heldMethodsWithKey } from '../methods/all.ts'
import { probeLag } from '../probe.ts'
import { median } from '../results.ts'
import type { Lines, Metric, Result } from '../results.ts'
import { singleLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

const metrics: Metric[] = [
  { key: 'before', title: 'likes/s before' },
  { key: 'held', title: 'likes/s while held' },
  { key: 'share', title: 'held / before', digits: 2 },
  { key: 'lastShare', title: 'last fifth / before', digits: 2 },
  { key: 'batchBefore', title: 'batch ms before', digits: 1 },
  { key: 'batchHeld', title: 'batch ms, last fifth', digits: 1 },
  { key: 'lagBefore', title: 'lag ms before', digits: 1 },
  { key: 'lagHeld', title: 'lag ms, last fifth', digits: 1 },
  { key: 'deadRows', title: 'dead rows' },
]

interface Timed {
  /** Seconds since the likes began. */
  at: number
  value: number
}

/** Someone forgets a transaction in REPEATABLE READ: what is dead since then stays, in every table of the database. */
export const held: Scenario = {
  name: 'held',
  description: 'likes at full speed while a REPEATABLE READ transaction is held open for minutes',
  run: async (bench) => [await likesWhileHeld(bench, 'held', false), await likesWhileHeld(bench, 'held-foreign-key', true)],
}

async function likesWhileHeld(bench: Bench, id: string, foreignKey: boolean): Promise<Result> {
  const { heldSeconds } = bench
  const beforeSeconds = heldSeconds / 5
  await using contest = await openContest(bench, foreignKey ? heldMethodsWithKey : heldMethods, { distribution: halfHot, foreignKey })
  await warmUp(bench, contest, halfHot)
  const withKey = foreignKey ? 'with a foreign key' : 'no foreign key'
  const chartOf = (name: string, what: string, yTitle: string, logarithmic?: true): Lines => ({
    id: `${id}-${name}`,
    title: `${what} with a REPEATABLE READ transaction held open from second ${beforeSeconds} on, ${withKey}`,
    xTitle: 's',
    yTitle,
    ...(logarithmic && { logarithmic }),
    lines: [],
  })
  const throughput = chartOf('throughput', 'Likes per second', 'likes/s')
  const lag = chartOf('lag', 'Lag of the stored count', 'ms', true)
  const { rows, failed } = await inTurn({ ...bench, repetitions: 1 }, id, contest.contestants, metrics, async (contestant) => {
    const { rates, lags, batches, deadRows } = await likeWhileHeld(bench, contestant, beforeSeconds)
    const { name } = contestant
    throughput.lines.push({ name, points: rates.map(({ at, value }) => [at, value]) })
    if (lags.length > 0) lag.lines.push({ name, points: lags.map(({ at, value }) => [at, value]) })
    const lastFrom = beforeSeconds + heldSeconds * 0.8
    const within = (series: readonly Timed[], from: number, to: number) => series.filter(({ at }) => at >= from && at < to).map(({ value }) => value)
    const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
    const before = mean(within(rates, 0, beforeSeconds))
    const whileHeld = mean(within(rates, beforeSeconds, Infinity))
    const medians = (key: string, series: readonly Timed[]) =>
      series.length === 0 ? {} : { [`${key}Before`]: median(within(series, 0, beforeSeconds)), [`${key}Held`]: median(within(series, lastFrom, Infinity)) }
    return { before, held: whileHeld, share: whileHeld / before, lastShare: mean(within(rates, lastFrom, Infinity)) / before, ...medians('batch', batches), ...medians('lag', lags), deadRows }
  })
  const title = `Likes for ${beforeSeconds} s, then ${heldSeconds} s more while a REPEATABLE READ transaction is held open, ${halfHot.name}, ${connections} connections, ${withKey} (medians of batch times and lag)`
  return { id, title, metrics, rows, notRun: contest.notRun, failed, charts: [throughput, lag] }
}

async function likeWhileHeld(bench: Bench, contestant: Contestant, beforeSeconds: number) {
  await reset(bench, contestant)
  const totalSeconds = beforeSeconds + bench.heldSeconds
  // Sixty points in all.
  const stepSeconds = Math.max(totalSeconds / 60, 0.1)
  const steps = Array.from({ length: Math.floor(totalSeconds / stepSeconds) }, () => 0)
  const batches: Timed[] = []
  let began = performance.now()
  const now = () => (performance.now() - began) / 1000
  const onLine = (line: string) => {
    const { ms } = (line.startsWith('{') ? JSON.parse(line) : {}) as { ms?: number }
    if (ms !== undefined) batches.push({ at: now(), value: ms })
  }
  await using consumer = await contestant.consume?.(onLine)
  began = performance.now()
  const stopping = AbortSignal.timeout(totalSeconds * 1000)
  const onDone = (done: number) => {
    const step = Math.floor(now() / stepSeconds)
    if (steps[step] !== undefined) steps[step] += done
  }
  // Awaited here: the consumer is stopped when this function ends.
  return await withClients(
    bench,
    async ([holder]) => {
      const hold = async () => {
        await sleep(beforeSeconds * 1000, undefined, { signal: bench.signal })
        await holder?.query('begin isolation level repeatable read; select 1')
      }
      const [{ done }, probing] = await Promise.all([
        atFullSpeed(bench, singleLikes(contestant, halfHot).act, totalSeconds, onDone),
        contestant.stored === undefined ? { lags: [], likes: 0 } : probeLag(bench, contestant, halfHot, stopping),
        hold(),
      ])
      consumer?.check()
      const deadRows = await countDeadRows(bench, contestant)
      await holder?.query('rollback')
      await verify(bench, contestant, done + probing.likes, consumer)
      const rates = steps.map((count, step): Timed => ({ at: step * stepSeconds, value: count / stepSeconds }))
      return { rates, lags: probing.lags.map(({ at, ms }): Timed => ({ at, value: ms })), batches, deadRows }
    },
    1,
  )
}

/** In the tables of the method and of what it uses, as the server's statistics have it. */
async function countDeadRows({ pool }: Bench, { tables, schemas = [] }: Contestant): Promise<number> {
  const { rows } = await pool.query<{ n: number }>('select coalesce(sum(n_dead_tup), 0)::int as n from pg_stat_user_tables where schemaname = any($1)', [[tables.schema, ...schemas]])
  return rows[0]?.n ?? 0
}
