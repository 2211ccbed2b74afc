import { execFile } from 'node:child_process'
import { access, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'

import { startEmbeddedServer, type EmbeddedServer } from '../../src/demo/embedded-server.ts'
import { testSettings } from './server.ts'

// The npm package with the embedded server has no pg_dump, and one can only dump from a server that is not newer. So whoever tests
// dumps starts servers of the version that the programs are of.

const programs = ['initdb', 'pg_ctl', 'postgres', 'pg_dump', 'pg_restore', 'pg_upgrade', 'psql'] as const
const oldestVersion = 14
const execFileAsync = promisify(execFile)

export const toolsMissing = `needs a whole PostgreSQL ${oldestVersion} or later, with pg_dump: apt-get install postgresql`

/** The programs of one PostgreSQL that is installed on this machine. */
export interface PostgresTools {
  readonly directory: string
  /** Runs a program on a database; gives what it wrote to stdout. */
  run(program: 'pg_dump' | 'pg_restore' | 'psql', url: string, ...args: string[]): Promise<string>
  startServer(settings?: Readonly<Record<string, string>>): Promise<EmbeddedServer>
  /** Gives `to`, which is empty, the data of `from`, which does not run any more. Both have the password `password`. */
  upgrade(from: EmbeddedServer, to: EmbeddedServer, password: string): Promise<void>
}

/** Undefined when there is none: then a test skips itself with `toolsMissing`. */
export async function findPostgresTools(): Promise<PostgresTools | undefined> {
  for (const directory of await candidates()) {
    if (!(await Promise.all(programs.map((program) => exists(path.join(directory, program))))).every(Boolean)) continue
    const { stdout } = await execFileAsync(path.join(directory, 'pg_dump'), ['--version'])
    const version = Number(/ (\d+)/.exec(stdout)?.[1])
    if (version >= oldestVersion) return tools(directory, version)
  }
  return undefined
}

function tools(directory: string, version: number): PostgresTools {
  return {
    directory,
    run: async (program, url, ...args) => {
      const { stdout } = await execFileAsync(path.join(directory, program), [`--dbname=${url}`, ...args], {
        env: { ...process.env, LC_ALL: 'C', PSQLRC: '/dev/null' },
        maxBuffer: 2 ** 28,
      })
      return stdout
    },
    startServer: (settings = {}) => startEmbeddedServer({ settings: { ...testSettings, ...settings }, postgresDir: directory }),
    upgrade: async (from, to, password) => {
      const { uid, gid } = await stat(to.dataDir)
      const program = (name: string, ...args: string[]) =>
        execFileAsync(path.join(directory, name), args, {
          ...(process.getuid?.() === 0 ? { uid, gid } : {}),
          cwd: path.dirname(to.dataDir),
          env: { ...process.env, LC_ALL: 'C', PGPASSWORD: password },
        })
      const options = path.join(to.dataDir, 'postmaster.opts')
      const ownOptions = await readFile(options)
      for (const { dataDir } of [from, to]) await program('pg_ctl', 'stop', '-s', '-w', '-D', dataDir)
      await program('pg_upgrade', '--link', ...(version < 15 ? [] : ['--no-sync']), `--old-bindir=${directory}`, `--new-bindir=${directory}`, `--old-datadir=${from.dataDir}`, `--new-datadir=${to.dataDir}`,
        `--socketdir=${path.dirname(to.dataDir)}`, '--username=postgres')
      // With its own options again and not those that pg_upgrade last started it with.
      await writeFile(options, ownOptions)
      await to.restart()
    },
  }
}

async function candidates(): Promise<string[]> {
  const configured = await execFileAsync('pg_config', ['--bindir']).then(
    ({ stdout }) => [stdout.trim()],
    () => [],
  )
  const onPath = (process.env['PATH'] ?? '').split(path.delimiter).filter((directory) => directory !== '')
  // Where Debian and Ubuntu have one directory for each version.
  const debian = '/usr/lib/postgresql'
  const versions = await readdir(debian).catch(() => [])
  const newestFirst = versions.toSorted((one, other) => other.localeCompare(one, 'en', { numeric: true }))
  return [...configured, ...onPath, ...newestFirst.map((version) => path.join(debian, version, 'bin'))]
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  )
}
