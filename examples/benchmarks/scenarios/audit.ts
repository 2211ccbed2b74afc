import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import type { Measurement } from '../../../src/index.ts'
import type { Bench } from '../bench.ts'
import { paced } from '../clients.ts'
import type { Act } from '../clients.ts'
import { inTurn } from '../contest.ts'
import { startWorker } from '../methods/tally.ts'
import type { Metric } from '../results.ts'
import { createLargeTables } from './large-tables.ts'
import type { Scenario } from './scenario.ts'

const likesPerSecond = 5000

const metrics: Metric[] = [
  { key: 'during', title: 'likes/s during the audit' },
  { key: 'before', title: 'before' },
  { key: 'after', title: 'after' },
  { key: 'loss', title: 'loss %', digits: 1 },
  { key: 'seconds', title: 'audit s', digits: 1 },
  { key: 'firstMb', title: 'MB of memory, at first' },
  { key: 'mostMb', title: 'at most' },
]

/** `pgtally audit` of ten million likes while more arrive and a worker applies them: what writers lose by it, and the memory it takes. */
export const audit: Scenario = {
  name: 'audit',
  description: 'what an audit of 10,000,000 likes costs those who like meanwhile',
  async run(bench) {
    const { counter, likeSomething, description } = await createLargeTables(bench)
    await bench.tally.createCounter('audited', counter)
    await bench.tally.drain()
    await using worker = await startWorker(bench)
    const { rows, failed } = await inTurn(bench, 'audit', [{ name: 'pgtally audit' }], metrics, async () => {
      // As long without the audit, half of it before and half after, so that a machine that changes its speed does so for both.
      const before = await rateDuring(bench, likeSomething, () => sleep(bench.seconds * 2000))
      let result: AuditRun | undefined
      const during = await rateDuring(bench, likeSomething, async () => {
        result = await runAudit(bench)
      })
      const after = await rateDuring(bench, likeSomething, () => sleep(bench.seconds * 2000))
      worker.check()
      if (result?.driftingKeys !== 0) throw new Error(`${result?.driftingKeys} keys drifted`)
      const { seconds, firstMb, mostMb } = result
      return { during, before, after, loss: (1 - during / ((before + after) / 2)) * 100, seconds, firstMb, mostMb }
    })
    return [{ id: 'audit', title: `Audit of ${description} while ${likesPerSecond} likes/s are asked for`, metrics, rows, failed }]
  },
}

async function rateDuring(bench: Bench, act: Act, work: () => Promise<unknown>): Promise<number> {
  const stopping = new AbortController()
  const load = paced(bench, act, likesPerSecond, stopping.signal)
  await work()
  stopping.abort()
  const { done, seconds } = await load
  return done / seconds
}

interface AuditRun {
  driftingKeys: number
  seconds: number
  firstMb: number
  mostMb: number
}

async function runAudit({ connectionString, signal }: Bench): Promise<AuditRun> {
  const main = fileURLToPath(new URL('../../../src/cli/main.ts', import.meta.url))
  const began = performance.now()
  const child = spawn(process.execPath, [main, 'audit', 'audited', '--json', '--database-url', connectionString], { stdio: ['ignore', 'pipe', 'inherit'], signal })
  const exited = once(child, 'exit')
  const output = text(child.stdout)
  const memory: number[] = []
  while (child.exitCode === null && child.signalCode === null) {
    const resident = await residentMb(child.pid)
    if (resident !== undefined) memory.push(resident)
    await sleep(50)
  }
  await exited
  const [found] = JSON.parse(await output) as Measurement[]
  if (found === undefined) throw new Error('The audit gave no result')
  // The first second is for starting Node.js.
  const begun = memory.length > 20 ? memory.slice(20) : memory
  return { driftingKeys: found.driftingKeys, seconds: (performance.now() - began) / 1000, firstMb: begun[0] ?? Number.NaN, mostMb: Math.max(...begun) }
}

/** Of another process; on Linux only. */
async function residentMb(pid: number | undefined): Promise<number | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  const kilobytes = /VmRSS:\s+(\d+)/.exec(status)?.[1]
  return kilobytes === undefined ? undefined : Math.round(Number(kilobytes) / 1024)
}
