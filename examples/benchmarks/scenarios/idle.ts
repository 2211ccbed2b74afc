import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

import { startWorker } from '../methods/tally.ts'
import type { Metric } from '../results.ts'
import type { Scenario } from './scenario.ts'

const counters = 20
const ticksPerSecond = 100

const metrics: Metric[] = [
  { key: 'worker', title: '% of a core in the worker', digits: 2 },
  { key: 'backends', title: 'in the server', digits: 2 },
  { key: 'xids', title: 'transaction ids assigned' },
]

/** What a worker costs that has nothing to do: its own processor time and its backends', from /proc (Linux, server on this machine). */
export const idle: Scenario = {
  name: 'idle',
  description: 'a worker that has nothing to do',
  async run(bench) {
    const { pool, tally, signal } = bench
    const seconds = Math.max(20 / bench.divisor, 2)
    for (let n = 1; n <= counters; n++) await tally.createCounter(`idle_${n}`, {})
    await using worker = await startWorker(bench)
    // Whatever the start takes is over by then.
    await sleep(3000, undefined, { signal })
    const { rows: backends } = await pool.query<{ pid: number }>(`select pid from pg_stat_activity where application_name = 'pgtally' and datname = current_database()`)
    const pids = [worker.pid, ...backends.map(({ pid }) => pid)]
    const measure = async () => {
      const used = await Promise.all(pids.map(processorSeconds))
      const { rows } = await pool.query<{ xid: string }>('select pg_snapshot_xmax(pg_current_snapshot())::text as xid')
      return { worker: used[0] ?? 0, backends: used.slice(1).reduce((sum, one) => sum + one, 0), xid: Number(rows[0]?.xid ?? 0) }
    }
    const before = await measure()
    await sleep(seconds * 1000, undefined, { signal })
    const after = await measure()
    worker.check()
    const percent = (used: number) => [(used / seconds) * 100]
    const samples = { worker: percent(after.worker - before.worker), backends: percent(after.backends - before.backends), xids: [after.xid - before.xid] }
    return [{ id: 'idle', title: `A worker without work, ${counters} counters, ${seconds} s`, metrics, rows: [{ name: 'pgtally', samples }] }]
  },
}

/** NaN where it cannot be known. */
async function processorSeconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  // After the name in parentheses: state is field 3, utime and stime are 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond
}
