import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

import { print, startWorker } from './bench.ts'
import type { Bench } from './bench.ts'

const counters = 20
const seconds = 20
const ticksPerSecond = 100

/** What a worker costs that has nothing to do: its own processor time and its backends', from /proc (Linux, server on this machine). */
export async function benchIdle(bench: Bench): Promise<void> {
  const { pool, tally } = bench
  for (let n = 1; n <= counters; n++) await tally.createCounter(`idle_${n}`, {})
  await using worker = await startWorker(bench)
  // Whatever the start takes is over by then.
  await sleep(3000)
  const { rows: backends } = await pool.query<{ pid: number }>(`select pid from pg_stat_activity where application_name = 'pgtally' and datname = current_database()`)
  const pids = [worker.pid ?? 0, ...backends.map(({ pid }) => pid)]
  const measure = async () => {
    const used = await Promise.all(pids.map(processorSeconds))
    const { rows } = await pool.query<{ xid: string }>('select pg_snapshot_xmax(pg_current_snapshot())::text as xid')
    return { worker: used[0] ?? 0, backends: used.slice(1).reduce((sum, one) => sum + one, 0), xid: BigInt(rows[0]?.xid ?? 0) }
  }
  const before = await measure()
  await sleep(seconds * 1000)
  const after = await measure()
  const percent = (used: number) => `${((used / seconds) * 100).toFixed(2)} %`
  print(`A worker without work, ${counters} counters, ${seconds} s`)
  print(`  ${percent(after.worker - before.worker)} of a core in the worker, ${percent(after.backends - before.backends)} in the server`)
  print(`  ${after.xid - before.xid} transaction ids assigned\n`)
}

async function processorSeconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  // After the name in parentheses: state is field 3, utime and stime are 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond
}
