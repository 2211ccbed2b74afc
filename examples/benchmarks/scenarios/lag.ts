import { atFullSpeed, connections, paced } from '../clients.ts'
import type { Bench } from '../bench.ts'
import { inTurn, openContest, reset, verify } from '../contest.ts'
import type { Contestant } from '../contest.ts'
import { halfHot } from '../distributions.ts'
import { laterMethods } from '../methods/all.ts'
import { probeLag } from '../probe.ts'
import type { Probing } from '../probe.ts'
import { quantile } from '../results.ts'
import type { Lines, Metric } from '../results.ts'
import { singleLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

const shares = [0.5, 0.9]
const metrics: Metric[] = [
  { key: 'possible', title: 'possible likes/s' },
  { key: 'rate', title: 'likes/s' },
  { key: 'p50', title: 'p50 ms', digits: 1 },
  { key: 'p95', title: 'p95 ms', digits: 1 },
  { key: 'p99', title: 'p99 ms', digits: 1 },
  { key: 'most', title: 'max ms', digits: 1 },
]

/** From the commit of a like to the stored count that includes it, while likes are sent on time at a share of each method's own possible rate. */
export const lag: Scenario = {
  name: 'lag',
  description: 'from the commit of a like to the stored count, at 50 % and 90 % of the possible rate',
  async run(bench) {
    await using contest = await openContest(bench, laterMethods, { distribution: halfHot, foreignKey: true })
    const possible = new Map<string, number>()
    const charts = shares.map((share): Lines => ({ id: `lag-${share * 100}-percent`, title: `Lag of the stored count at ${share * 100} % of each method's possible rate`, xTitle: 's', yTitle: 'ms', logarithmic: true, lines: [] }))
    const contestants = contest.contestants.flatMap((contestant) =>
      shares.map((share, index) => ({ ...contestant, name: `${contestant.name}, ${share * 100} %`, method: contestant.name, share, chart: charts[index] })),
    )
    const { rows, failed } = await inTurn(bench, 'lag', contestants, metrics, async (contestant) => {
      const { method, share, chart } = contestant
      if (share === shares[0]) possible.set(method, await possibleRate(bench, contestant))
      const { rate, lags } = await lagsAt(bench, contestant, (possible.get(method) ?? 0) * share)
      if (!chart?.lines.some(({ name }) => name === method)) chart?.lines.push({ name: method, points: lags.map(({ at, ms }) => [at, ms]) })
      const ms = lags.map((one) => one.ms)
      return { possible: possible.get(method) ?? Number.NaN, rate, p50: quantile(ms, 0.5), p95: quantile(ms, 0.95), p99: quantile(ms, 0.99), most: quantile(ms, 1) }
    })
    const title = `Lag from the commit of a like to the stored count, at a share of the rate at which each takes likes in and counts them, ${halfHot.name}, ${connections} connections, with a foreign key`
    return [{ id: 'lag', title, metrics, rows, notRun: contest.notRun, failed, charts }]
  },
}

/** The highest rate at which likes come in with the worker running, which has to keep up: until all are counted. */
async function possibleRate(bench: Bench, contestant: Contestant): Promise<number> {
  await reset(bench, contestant)
  await using consumer = await contestant.consume?.()
  const { done, seconds } = await atFullSpeed(bench, singleLikes(contestant, halfHot).act, bench.seconds * 2)
  const restMs = await verify(bench, contestant, done, consumer)
  return done / (seconds + restMs / 1000)
}

async function lagsAt(bench: Bench, contestant: Contestant, perSecond: number): Promise<{ rate: number; lags: Probing['lags'] }> {
  await reset(bench, contestant)
  await using consumer = await contestant.consume?.()
  const stopping = AbortSignal.timeout(bench.seconds * 5000)
  const [{ done, seconds }, { lags, likes }] = await Promise.all([
    paced(bench, singleLikes(contestant, halfHot).act, perSecond, stopping),
    probeLag(bench, contestant, halfHot, stopping),
  ])
  await verify(bench, contestant, done + likes, consumer)
  return { rate: done / seconds, lags }
}
