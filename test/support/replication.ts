import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { appendFile, readFile, rm, stat, writeFile } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'
import { promisify } from 'node:util'

import pg from 'pg'
import type { TestContext } from 'vitest'

import type { EmbeddedServer } from '../../src/demo/embedded-server.ts'
import { waitFor } from './database.ts'
import { value } from './fixtures.ts'
import { dedicatedServer } from './server.ts'

export interface Replication extends AsyncDisposable {
  readonly primary: EmbeddedServer
  readonly standby: Standby
  /** Waits until the standby has replayed all that the primary has written so far. */
  caughtUp(): Promise<void>
}

interface Standby {
  /** The URL of one of the primary's databases, on the standby. */
  url(connectionString: string): string
  /** A session of a superuser. */
  readonly pool: pg.Pool
  /** From now on it gets nothing from the primary. */
  cutOff(): Promise<void>
  /** Makes it the primary. Resolves when it takes writes. */
  promote(): Promise<void>
}

export interface ReplicationOptions {
  /** Whether a commit waits for the standby. */
  synchronous: boolean
  /** Settings of both servers. */
  settings?: Readonly<Record<string, string>>
}

const execFileAsync = promisify(execFile)

/**
 * Makes `standby` a hot standby of `primary`, by a copy of the primary's files, as the embedded server comes without pg_basebackup. Both are started anew.
 *
 * @param settings of the standby, besides the primary's
 */
export async function makeStandby(primary: EmbeddedServer, standby: EmbeddedServer, settings: Readonly<Record<string, string>> = {}): Promise<void> {
  await Promise.all([primary.crash(), standby.crash()])
  const { uid, gid } = await stat(standby.dataDir)
  // It says which directory the server is to be started on.
  const options = path.join(standby.dataDir, 'postmaster.opts')
  const ownOptions = await readFile(options)
  await rm(standby.dataDir, { recursive: true })
  await execFileAsync('cp', ['-a', primary.dataDir, standby.dataDir], process.getuid?.() === 0 ? { uid, gid } : {})
  await writeFile(options, ownOptions)
  const { port, password } = new URL(primary.connectionString)
  const all = { port: String(standby.port), primary_conninfo: `host=127.0.0.1 port=${port} user=postgres password=${password} application_name=standby`, ...settings }
  await appendFile(path.join(standby.dataDir, 'postgresql.conf'), Object.entries(all).map(([name, setting]) => `${name} = '${setting}'\n`).join(''))
  await writeFile(path.join(standby.dataDir, 'standby.signal'), '')
  await Promise.all([primary.restart(), standby.restart()])
}

/**
 * A primary and a hot standby that streams from it.
 *
 * @example
 * ```ts
 * test('…', async (context) => {
 *   await using servers = await startReplication(context, { synchronous: true })
 * })
 * ```
 */
export async function startReplication(context: TestContext, { synchronous, settings = {} }: ReplicationOptions): Promise<Replication> {
  await using starting = new AsyncDisposableStack()
  const start = async () => starting.use(await dedicatedServer(context, settings))
  const [primary, standbyServer] = await Promise.all([start(), start()])
  await makeStandby(primary, standbyServer)

  const onStandbyServer = (connectionString: string) => {
    const url = new URL(connectionString)
    url.port = String(standbyServer.port)
    return url.href
  }
  const onPrimary = starting.adopt(new pg.Pool({ connectionString: primary.connectionString, max: 1 }), (pool) => pool.end())
  const onStandby = starting.adopt(new pg.Pool({ connectionString: onStandbyServer(primary.connectionString), max: 1 }), (pool) => pool.end())
  for (const pool of [onPrimary, onStandby]) pool.on('error', () => {})
  const streams = (state: string) => waitFor(async () => value<boolean>(onPrimary, `select exists (select from pg_stat_replication where application_name = 'standby' and ${state})`), { what: `the standby: ${state}` })
  await streams(`state = 'streaming'`)
  if (synchronous) {
    await onPrimary.query(`alter system set synchronous_standby_names = 'standby'`)
    await onPrimary.query('select pg_reload_conf()')
    await streams(`sync_state = 'sync'`)
  }

  const running = starting.move()
  return {
    primary,
    standby: {
      url: onStandbyServer,
      pool: onStandby,
      cutOff: async () => {
        await onStandby.query(`alter system set primary_conninfo = ''`)
        await onStandby.query('select pg_reload_conf()')
        await waitFor(async () => value<boolean>(onStandby, 'select not exists (select from pg_stat_wal_receiver)'), { what: 'the end of the stream' })
      },
      promote: async () => {
        await onStandby.query('select pg_promote()')
      },
    },
    caughtUp: async () => {
      // A commit that waits for the disk takes there what was committed before without waiting; and one that has written nothing does not wait.
      await onPrimary.query(`begin; set local synchronous_commit = local; select pg_logical_emit_message(true, 'test', ''); commit`)
      const position = await value<string>(onPrimary, 'select pg_current_wal_flush_lsn()::text')
      await waitFor(async () => value<boolean>(onStandby, 'select pg_last_wal_replay_lsn() >= $1::pg_lsn', [position]), { what: 'the standby to catch up' })
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  }
}

export interface Address extends AsyncDisposable {
  /** The URL with this address in it. */
  readonly connectionString: string
  /** New connections lead there from now on. Those that there are go on, until they are cut. */
  moveTo(connectionString: string): void
  /** Ends all connections. */
  cut(): void
}

/** An address that can be moved to another server, as a failover does it. */
export async function startAddress(connectionString: string): Promise<Address> {
  let target = new URL(connectionString)
  const sockets = new Set<net.Socket>()
  const cut = () => {
    for (const socket of sockets) socket.destroy()
  }
  const server = net.createServer((client) => {
    const upstream = net.connect(Number(target.port), target.hostname)
    for (const [socket, other] of [[client, upstream], [upstream, client]] as const) {
      sockets.add(socket)
      socket.on('error', () => {}).on('close', () => {
        sockets.delete(socket)
        other.destroy()
      })
      socket.pipe(other)
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = new URL(connectionString)
  url.hostname = '127.0.0.1'
  url.port = String((server.address() as net.AddressInfo).port)
  return {
    connectionString: url.href,
    moveTo: (to) => {
      target = new URL(to)
    },
    cut,
    [Symbol.asyncDispose]: async () => {
      cut()
      server.close()
      await once(server, 'close')
    },
  }
}
