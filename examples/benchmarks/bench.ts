import os from 'node:os'

import pg from 'pg'

import { startEmbeddedServer } from '../../src/demo/embedded-server.ts'
// In your own project: from 'pgtally'
import { createTally } from '../../src/index.ts'
import type { Tally } from '../../src/index.ts'

/** How much is measured. */
export interface Extent {
  /** Seconds that one measurement of a rate takes. */
  seconds: number
  /** How often each is measured, in turn with the others. */
  repetitions: number
  /** Seconds for which a transaction is held open. */
  heldSeconds: number
  /** Seconds of a rotation period. */
  rotationSeconds: number
  /** Rows and reads are divided by this, to look whether everything works. */
  divisor: number
}

export const fullExtent: Extent = { seconds: 3, repetitions: 3, heldSeconds: 300, rotationSeconds: 10, divisor: 1 }
export const quickExtent: Extent = { seconds: 0.2, repetitions: 1, heldSeconds: 2, rotationSeconds: 1, divisor: 50 }

/** What a scenario is given: a new database with pgtally in it. */
export interface Bench extends Extent {
  readonly pool: pg.Pool
  readonly connectionString: string
  readonly tally: Tally
  /** Where PgQue's SQL is. */
  readonly pgqueFile: string | undefined
  readonly signal: AbortSignal
  progress(text: string): void
}

export interface BenchServer extends AsyncDisposable {
  readonly connectionString: string
}

/** Durable as by default, and large enough that no checkpoint falls into a measurement. */
const settings = { shared_buffers: '1GB', max_wal_size: '8GB', max_connections: '100' }

export async function openServer(databaseUrl: string | undefined): Promise<BenchServer> {
  if (databaseUrl === undefined) return startEmbeddedServer({ settings })
  return { connectionString: databaseUrl, async [Symbol.asyncDispose]() {} }
}

/** Runs `work` in a database of its own, which is dropped afterwards. */
export async function withBench<T>({ connectionString: serverUrl }: BenchServer, context: Omit<Bench, 'pool' | 'connectionString' | 'tally'>, work: (bench: Bench) => Promise<T>): Promise<T> {
  const admin = new pg.Client({ connectionString: serverUrl })
  await admin.connect()
  const name = `pgtally_bench_${process.pid}`
  const drop = () => admin.query(`drop database if exists ${name} with (force)`)
  await drop()
  await admin.query(`create database ${name}`)
  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  const connectionString = url.href
  const pool = new pg.Pool({ connectionString, max: 20 })
  pool.on('error', () => {})
  // Ends every statement that is under way, and with it whoever waits for one.
  const onAbort = () => void drop().catch(() => {})
  context.signal.addEventListener('abort', onAbort, { once: true })
  try {
    const tally = createTally({ pool })
    await tally.install()
    return await work({ ...context, pool, connectionString, tally })
  } finally {
    context.signal.removeEventListener('abort', onAbort)
    await pool.end()
    await drop()
    await admin.end()
  }
}

export interface Machine {
  processor: string
  cores: number
  memoryGb: number
  system: string
  node: string
  /** Of the server: its version, and what durability and speed depend on. */
  server: Record<string, string>
}

export async function describeMachine({ connectionString }: BenchServer): Promise<Machine> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    const { rows } = await client.query<{ name: string; setting: string }>(
      `select name, current_setting(name) as setting from pg_settings
      where name in ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'shared_buffers', 'max_wal_size', 'max_connections', 'jit', 'autovacuum') order by name`,
    )
    return {
      processor: os.cpus()[0]?.model ?? 'unknown',
      cores: os.availableParallelism(),
      memoryGb: Math.round(os.totalmem() / 2 ** 30),
      system: `${os.platform()} ${os.arch()}`,
      node: process.versions.node,
      server: Object.fromEntries(rows.map(({ name, setting }) => [name, setting])),
    }
  } finally {
    await client.end()
  }
}
