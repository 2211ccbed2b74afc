import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chown, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'

import pg from 'pg'
import type { TestContext } from 'vitest'

import { waitFor } from './database.ts'
import { findProgram, freePort } from './programs.ts'

const execFileAsync = promisify(execFile)

export interface Pgbouncer extends AsyncDisposable {
  /** The URL by way of the pooler. */
  readonly connectionString: string
}

/** A PgBouncer in transaction mode before the database, with so many connections to it. Where it is not installed, the test is skipped. */
export async function startPgbouncer(context: TestContext, connectionString: string, poolSize: number): Promise<Pgbouncer> {
  const program = await findProgram('pgbouncer')
  if (program === undefined) return context.skip('needs pgbouncer: apt-get install pgbouncer')
  const { stdout } = await execFileAsync(program, ['--version'])
  const [, major, minor] = /(\d+)\.(\d+)/.exec(stdout) ?? []
  const knowsPrepared = Number(major) > 1 || Number(minor) >= 21
  const { hostname, port: serverPort, username, password, pathname } = new URL(connectionString)
  const database = pathname.slice(1)
  const port = await freePort()
  const directory = await mkdtemp(path.join(tmpdir(), 'pgtally-pgbouncer-'))
  const users = path.join(directory, 'users.txt')
  const settings = path.join(directory, 'pgbouncer.ini')
  await writeFile(users, `"${decodeURIComponent(username)}" "${decodeURIComponent(password)}"\n`)
  await writeFile(
    settings,
    `[databases]
${database} = host=${hostname} port=${serverPort} dbname=${database} pool_size=${poolSize}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${users}
pool_mode = transaction
max_client_conn = 200
${knowsPrepared ? 'max_prepared_statements = 0' : ''}
`,
  )
  const identity = await unprivileged()
  for (const file of [directory, users, settings]) if (identity !== undefined) await chown(file, identity.uid, identity.gid)
  // Its end comes with that of this process, however that ends: then the shell reads the end of its input.
  const child = spawn('sh', ['-c', '"$0" -q "$1" & cat > /dev/null; kill -INT $!; wait', program, settings], { ...identity, stdio: ['pipe', 'ignore', 'pipe'] })
  let complaints = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (complaints += text))
  const exit = once(child, 'exit')
  const stop = async () => {
    child.stdin?.end()
    await exit
    await rm(directory, { recursive: true, force: true })
  }
  const url = new URL(connectionString)
  url.hostname = '127.0.0.1'
  url.port = String(port)
  try {
    await waitFor(() => answers(url.href), { what: 'pgbouncer' })
  } catch (cause) {
    await stop()
    throw new Error(`pgbouncer did not start: ${complaints}`, { cause })
  }
  return { connectionString: url.href, [Symbol.asyncDispose]: stop }
}

/** It refuses to run as root. */
async function unprivileged(): Promise<{ uid: number; gid: number } | undefined> {
  if (process.getuid?.() !== 0) return undefined
  const id = async (flag: string) => Number((await execFileAsync('id', [flag, 'nobody'])).stdout)
  return { uid: await id('-u'), gid: await id('-g') }
}

async function answers(connectionString: string): Promise<boolean> {
  const client = new pg.Client({ connectionString })
  client.on('error', () => {})
  try {
    await client.connect()
    await client.query('select 1')
    return true
  } catch {
    return false
  } finally {
    await client.end().catch(() => {})
  }
}
