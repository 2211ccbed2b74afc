import { once } from 'node:events'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { availableParallelism } from 'node:os'

import pg from 'pg'

import { formatTable } from '../../src/table.ts'
import { startEmbeddedServer } from '../../src/demo/embedded-server.ts'
// In your own project: from 'pgtally'
import { createTally } from '../../src/index.ts'
import type { Tally } from '../../src/index.ts'

export interface Bench {
  pool: pg.Pool
  connectionString: string
  tally: Tally
  /** Seconds that one measurement of a rate takes. */
  seconds: number
  repetitions: number
}

/** Durable, and large enough that no checkpoint falls into a measurement. */
const settings = { shared_buffers: '1GB', max_wal_size: '8GB', max_connections: '100' }

/** Runs `work` in a database of its own, on an embedded server where no other is given; prints where that is. */
export async function withBench(databaseUrl: string | undefined, options: Pick<Bench, 'seconds' | 'repetitions'>, work: (bench: Bench) => Promise<void>): Promise<void> {
  await using server = databaseUrl === undefined ? await startEmbeddedServer({ settings }) : { connectionString: databaseUrl, async [Symbol.asyncDispose]() {} }
  const admin = new pg.Client({ connectionString: server.connectionString })
  await admin.connect()
  const name = `pgtally_bench_${process.pid}`
  await admin.query(`create database ${name}`)
  const url = new URL(server.connectionString)
  url.pathname = `/${name}`
  const connectionString = url.href
  const pool = new pg.Pool({ connectionString, max: 20 })
  pool.on('error', () => {})
  try {
    await describeMachine(pool)
    const tally = createTally({ pool })
    await tally.install()
    await work({ pool, connectionString, tally, ...options })
  } finally {
    await pool.end()
    await admin.query(`drop database ${name} with (force)`)
    await admin.end()
  }
}

async function describeMachine(pool: pg.Pool): Promise<void> {
  const { rows } = await pool.query<{ name: string; setting: string }>(
    `select name, current_setting(name) as setting from pg_settings
    where name in ('server_version', 'fsync', 'synchronous_commit', 'shared_buffers', 'max_wal_size') order by name`,
  )
  print(`Node ${process.versions.node}, ${availableParallelism()} cores; ${rows.map(({ name, setting }) => `${name} ${setting}`).join(', ')}\n`)
}

/** Calls `act` from `connections` connections, each as soon as its last call is through, and returns the calls per second. */
export async function rate(bench: Bench, connections: number, act: (client: pg.Client) => Promise<unknown>): Promise<number> {
  const clients = await Promise.all(
    Array.from({ length: connections }, async () => {
      const client = new pg.Client({ connectionString: bench.connectionString })
      await client.connect()
      return client
    }),
  )
  try {
    const began = performance.now()
    const end = began + bench.seconds * 1000
    const counts = await Promise.all(
      clients.map(async (client) => {
        let count = 0
        for (; performance.now() < end; count++) await act(client)
        return count
      }),
    )
    return counts.reduce((sum, count) => sum + count, 0) / ((performance.now() - began) / 1000)
  } finally {
    await Promise.all(clients.map((client) => client.end()))
  }
}

/** A worker process with default settings; resolves when it has begun to work. */
export async function startWorker(bench: Bench): Promise<ChildProcess & AsyncDisposable> {
  const main = new URL('../../src/cli/main.ts', import.meta.url).pathname
  const worker = spawn(process.execPath, [main, 'worker', '--database-url', bench.connectionString], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(worker.stdout, 'data')
  worker.stdout.resume()
  return Object.assign(worker, {
    async [Symbol.asyncDispose]() {
      const exited = once(worker, 'exit')
      worker.kill('SIGTERM')
      await exited
    },
  })
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN
}

export const median = (values: readonly number[]) => quantile(values, 0.5)

/** Figures that were taken in turn, each with its ratio to the first of them. */
export function printRates(title: string, unit: string, rates: ReadonlyMap<string, readonly number[]>): void {
  const [first = []] = rates.values()
  const whole = (value: number) => Math.round(value).toLocaleString('en-US')
  const rows = [...rates].map(([name, values]) => [
    name,
    whole(median(values)),
    whole(Math.min(...values)),
    whole(Math.max(...values)),
    median(values.map((value, index) => value / (first[index] ?? Number.NaN))).toFixed(2),
  ])
  print(`${title}\n`)
  print(`${formatTable(['', `${unit}, median`, 'min', 'max', 'ratio'], rows, [1, 2, 3, 4])}\n`)
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`)
}
