// Half an hour of likes with a fault every ten seconds: npm run soak. Exit code 1 when a count was wrong at the end, or something grew.

import { writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

import { Command, InvalidArgumentError } from 'commander'

import { wholeNumber } from '../../src/cli/command.ts'
import { startEmbeddedServer } from '../../src/demo/embedded-server.ts'
import { Interruption, withInterruption } from '../../src/demo/interruption.ts'
import { formatTable } from '../../src/table.ts'
import { formatNumber } from '../benchmarks/report.ts'
import { quantile } from '../benchmarks/results.ts'
import { drawSoak } from './chart.ts'
import type { Fault } from './chart.ts'
import { faults } from './faults.ts'
import type { Victims } from './faults.ts'
import { Sampler } from './sampler.ts'
import type { Sample } from './sampler.ts'
import { createSite, Load } from './site.ts'
import type { Site } from './site.ts'
import { WorkerProcess } from './workers.ts'

interface Options {
  minutes: number
  rate: number
  faultEvery: number
  json?: string
  chart?: string
}

const connections = 16
const sampleIntervalMs = 2000
const auditIntervalMs = 30_000
// What is the same after half an hour may still differ by this much from one ten minutes to another.
const mostGrowth = 1.25
const warmUpShare = 0.1
// Before, each slot is still being written for the first time or two.
const steadyAfterMinutes = 10

const print = (text: string) => process.stdout.write(`${text}\n`)
const progress = (text: string) => process.stderr.write(`${text}\n`)

const flat: { name: string; q: number; value: (sample: Sample) => number; unit: string; digits: number }[] = [
  { name: "worker's memory", q: 0.5, value: ({ workerBytes }) => workerBytes / 1e6, unit: 'MB', digits: 0 },
  { name: "pgtally's tables", q: 0.5, value: ({ pgtallyBytes }) => pgtallyBytes / 1e6, unit: 'MB', digits: 1 },
  { name: "pgtally's tables, largest", q: 1, value: ({ pgtallyBytes }) => pgtallyBytes / 1e6, unit: 'MB', digits: 1 },
  { name: 'posts', q: 0.5, value: ({ postsBytes }) => postsBytes / 1e6, unit: 'MB', digits: 1 },
  { name: 'lag, median', q: 0.5, value: ({ lagSeconds }) => lagSeconds, unit: 's', digits: 3 },
  { name: 'lag, 90th percentile', q: 0.9, value: ({ lagSeconds }) => lagSeconds, unit: 's', digits: 3 },
]

function someMinutes(text: string): number {
  const number = Number(text)
  if (!(number > 0)) throw new InvalidArgumentError('It must be a number of minutes.')
  return number
}

/** Each name once, in an order of chance, then again. */
function* shuffled(names: readonly string[]): Generator<string, never> {
  for (;;) yield* names.map((name) => ({ name, rank: Math.random() })).toSorted((a, b) => a.rank - b.rank).map(({ name }) => name)
}

async function injectFaults(victims: Victims, everySeconds: number, sampler: Sampler, done: Fault[], signal: AbortSignal): Promise<void> {
  const names = shuffled(Object.keys(faults))
  for (let next = everySeconds; ; next += everySeconds) {
    await sleep(Math.max((next - sampler.elapsedSeconds) * 1000, 0), undefined, { signal }).catch(() => {})
    if (signal.aborted) return
    const name = names.next().value
    done.push({ at: sampler.elapsedSeconds, name })
    await faults[name]?.(victims).catch((error: Error) => progress(`${name}: ${error.message}`))
  }
}

/** What is wrong with the counts; empty when nothing is. Not every audit succeeds while servers crash. */
async function wrongCounts(site: Site): Promise<string[]> {
  const { driftingKeys, drifts } = await site.tally.counter('post_likes').audit()
  return driftingKeys === 0 ? [] : [`${driftingKeys} keys drift, ${JSON.stringify(drifts[0])} among them`]
}

async function waitForConsumer(site: Site, signal: AbortSignal): Promise<void> {
  while ((await site.tally.status()).consumers.some(({ pendingEvents }) => pendingEvents > 0)) await sleep(100, undefined, { signal })
}

async function wrongAtTheEnd(site: Site): Promise<string[]> {
  await site.tally.drain()
  const wrong = await wrongCounts(site)
  const { rows } = await site.admin.query<{ stored: string; consumed: string }>(
    `with counted as (select post_id, count(*) as n from likes group by post_id)
     select (select count(*) from posts p left join counted c on c.post_id = p.id where p.like_count <> coalesce(c.n, 0)) as stored,
       (select count(*) from consumed full join counted c using (post_id) where coalesce(likes, 0) <> coalesce(n, 0)) as consumed`,
  )
  const [{ stored, consumed } = { stored: '', consumed: '' }] = rows
  if (stored !== '0') wrong.push(`${stored} stored counts differ from the rows`)
  if (consumed !== '0') wrong.push(`the consumer has ${consumed} counts that differ from the rows`)
  return wrong
}

/** One line for each figure: its first and its last third. */
function compareThirds(samples: readonly Sample[]): { table: string; grown: string[] } {
  const steady = samples.slice(Math.floor(samples.length * warmUpShare))
  const third = Math.floor(steady.length / 3)
  const grown: string[] = []
  const rows = flat.map(({ name, q, value, unit, digits }) => {
    const [first, last] = [steady.slice(0, third), steady.slice(-third)].map((part) => quantile(part.map(value), q)) as [number, number]
    const ratio = last / first
    if (ratio > mostGrowth) grown.push(`${name} grew from ${formatNumber(first, digits)} to ${formatNumber(last, digits)} ${unit}`)
    return [`${name}, ${unit}`, formatNumber(first, digits), formatNumber(last, digits), formatNumber(ratio, 2)]
  })
  return { table: formatTable(['', 'first third', 'last third', 'ratio'], rows, [1, 2, 3]), grown }
}

async function soak({ minutes, rate, faultEvery, json, chart }: Options, signal: AbortSignal): Promise<void> {
  await using server = await startEmbeddedServer({ settings: { max_connections: '100', max_wal_size: '4GB' } })
  const site = await createSite(server.connectionString, connections)
  const workers = [new WorkerProcess(server.connectionString), new WorkerProcess(server.connectionString)] as const
  const stopping = new AbortController()
  const stopped = AbortSignal.any([signal, stopping.signal])
  const load = new Load(site, connections, rate, stopped)
  const sampler = new Sampler(site, load, workers[0])
  const injected: Fault[] = []
  const injecting = injectFaults({ server, site, worker: workers[1] }, faultEvery, sampler, injected, stopped)
  const wrong: string[] = []
  let audits = 0
  const auditAgainAndAgain = async () => {
    while (!stopped.aborted) {
      await sleep(auditIntervalMs, undefined, { signal: stopped }).catch(() => {})
      const found = stopped.aborted ? undefined : await wrongCounts(site).catch(() => undefined)
      if (found === undefined) continue
      audits++
      wrong.push(...found)
    }
  }
  const auditing = auditAgainAndAgain()
  try {
    for (let reportAt = 60; sampler.elapsedSeconds < minutes * 60; ) {
      await sleep(sampleIntervalMs, undefined, { signal })
      await sampler.take().catch(() => {})
      const sample = sampler.samples.at(-1)
      if (sample === undefined || sampler.elapsedSeconds < reportAt) continue
      reportAt += 60
      const { at, likesPerSecond, lagSeconds, workerBytes, pgtallyBytes } = sample
      progress(`${formatNumber(at / 60, 1)} min: ${formatNumber(likesPerSecond)} likes/s, ${formatNumber(lagSeconds, 3)} s behind, worker ${formatNumber(workerBytes / 1e6)} MB, tables ${formatNumber(pgtallyBytes / 1e6, 1)} MB, ${injected.length} faults, ${audits} audits`)
    }
    const seconds = sampler.elapsedSeconds
    stopping.abort()
    await Promise.all([injecting, auditing, load.end()])
    await waitForConsumer(site, signal)
    await Promise.all(workers.map((worker) => worker.end('SIGTERM')))
    wrong.push(...(await wrongAtTheEnd(site)))

    const compared = compareThirds(sampler.samples)
    const grown = minutes < steadyAfterMinutes ? [] : compared.grown
    const summary = `${formatNumber(seconds / 60, 1)} minutes, ${formatNumber(load.likes)} likes (${formatNumber(load.likes / seconds)}/s), ${injected.length} faults, ${audits} audits while it ran`
    print(`${summary}\n\n${compared.table}`)
    for (const problem of [...wrong, ...grown]) print(`WRONG: ${problem}`)
    if (wrong.length + grown.length > 0) process.exitCode = 1
    else print(`Every count is exact${minutes < steadyAfterMinutes ? '' : ', and nothing has grown'}.`)
    if (json !== undefined) await writeFile(json, JSON.stringify({ summary, failures: load.failures, wrong, grown, faults: injected, samples: sampler.samples }, null, 1))
    if (chart !== undefined) await writeFile(chart, drawSoak(summary, sampler.samples, injected))
  } finally {
    stopping.abort()
    await Promise.allSettled([injecting, auditing, load.end()])
    await Promise.allSettled(workers.map((worker) => worker.end('SIGKILL')))
    await site.end()
  }
}

await new Command('soak')
  .description('Likes a site with two workers and a consumer, injects faults all the while, and says whether every count is exact in the end and memory, tables and lag have stayed as they were.')
  .option('--minutes <n>', `how long; what grows is looked at from ${steadyAfterMinutes} on`, someMinutes, 30)
  .option('--rate <n>', 'likes per second', wholeNumber(1), 3000)
  .option('--fault-every <n>', 'seconds from one fault to the next', wholeNumber(1), 10)
  .option('--json <file>', 'write all samples and faults')
  .option('--chart <file>', 'draw them, as SVG')
  .action(async (options: Options) => {
    try {
      await withInterruption((signal) => soak(options, signal))
    } catch (error) {
      const interruption = error instanceof Interruption ? error : error instanceof Error ? error.cause : undefined
      if (!(interruption instanceof Interruption)) throw error
      progress(`${interruption.message}; everything is stopped.`)
      process.exitCode = interruption.exitCode
    }
  })
  .parseAsync()
