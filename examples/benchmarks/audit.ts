import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'

import type { Measurement } from '../../src/index.ts'
import { median, print, startWorker } from './bench.ts'
import type { Bench } from './bench.ts'
import { createLikes, likeSomething, likes, likesCounter, paceLikes, posts } from './load.ts'

const likesPerSecond = 5000

/** `pgtally audit` of ten million likes while more arrive and a worker applies them: what writers lose by it, and the memory it takes. */
export async function benchAudit(bench: Bench): Promise<void> {
  const { tally } = bench
  await createLikes(bench)
  await tally.createCounter('audited', likesCounter)
  await tally.drain()
  await using worker = await startWorker(bench)
  print(`Audit of ${likes.toLocaleString('en-US')} likes of ${posts.toLocaleString('en-US')} posts while ${likesPerSecond} likes/s are asked for`)
  const losses: number[] = []
  for (let repetition = 1; repetition <= bench.repetitions; repetition++) {
    // As long without the audit, half of it before and half after, so that a machine that changes its speed does so for both.
    const before = await rateDuring(bench, () => sleep(bench.seconds * 500))
    let result: AuditRun | undefined
    const during = await rateDuring(bench, async () => {
      result = await runAudit(bench)
    })
    const after = await rateDuring(bench, () => sleep(bench.seconds * 500))
    if (result === undefined || result.driftingKeys > 0) throw new Error(`${result?.driftingKeys} keys drifted`)
    const loss = 1 - during / ((before + after) / 2)
    losses.push(loss)
    print(
      `  ${repetition}/${bench.repetitions} ${Math.round(during)} likes/s during the audit, ${Math.round(before)} before, ${Math.round(after)} after; ` +
        `${result.checkedKeys} keys in ${result.seconds.toFixed(1)} s, no drift; resident memory ${result.firstMb} MB when it began, ${result.mostMb} MB at most`,
    )
  }
  if (worker.exitCode !== null) throw new Error('The worker ended before its time')
  await tally.dropCounter('audited')
  print(`  writers lose ${(median(losses) * 100).toFixed(1)} % (median)\n`)
}

async function rateDuring(bench: Bench, work: () => Promise<void>): Promise<number> {
  const stopping = new AbortController()
  const began = performance.now()
  const load = paceLikes(bench, likesPerSecond, likeSomething, stopping.signal)
  await work()
  stopping.abort()
  const sent = await load
  return sent / ((performance.now() - began) / 1000)
}

interface AuditRun {
  checkedKeys: number
  driftingKeys: number
  seconds: number
  firstMb: number
  mostMb: number
}

async function runAudit({ connectionString }: Bench): Promise<AuditRun> {
  const main = new URL('../../src/cli/main.ts', import.meta.url).pathname
  const began = performance.now()
  const child = spawn(process.execPath, [main, 'audit', 'audited', '--json', '--database-url', connectionString], { stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  const output = text(child.stdout)
  const memory: number[] = []
  while (child.exitCode === null && child.signalCode === null) {
    const resident = await residentMb(child.pid)
    if (resident !== undefined) memory.push(resident)
    await sleep(50)
  }
  await exited
  const [audit] = JSON.parse(await output) as Measurement[]
  if (audit === undefined) throw new Error('The audit gave no result')
  // The first second is for starting Node.js.
  const begun = memory.slice(20)
  return { ...audit, seconds: (performance.now() - began) / 1000, firstMb: begun[0] ?? Number.NaN, mostMb: Math.max(...begun) }
}

/** Of another process; on Linux only. */
async function residentMb(pid: number | undefined): Promise<number | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  const kilobytes = /VmRSS:\s+(\d+)/.exec(status)?.[1]
  return kilobytes === undefined ? undefined : Math.round(Number(kilobytes) / 1024)
}
