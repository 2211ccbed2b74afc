import { execFile, spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const run = promisify(execFile)
const file = (name: string) => fileURLToPath(new URL(name, import.meta.url))

/** A `pgtally worker` with the consumer, as a process that can be killed and started again. */
export class WorkerProcess {
  readonly #connectionString: string
  #child: ChildProcess

  constructor(connectionString: string) {
    this.#connectionString = connectionString
    this.#child = this.#spawn()
  }

  #spawn(): ChildProcess {
    const args = [file('../../src/cli/main.ts'), 'worker', '--database-url', this.#connectionString, '--module', file('consumers.ts')]
    return spawn(process.execPath, args, { stdio: 'ignore' })
  }

  signal(name: 'SIGSTOP' | 'SIGCONT'): void {
    this.#child.kill(name)
  }

  async end(name: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) throw new Error(`A worker ended by itself, with ${this.#child.exitCode ?? this.#child.signalCode}.`)
    const exited = once(this.#child, 'exit')
    this.#child.kill(name)
    await exited
  }

  async restart(name: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    await this.end(name)
    this.#child = this.#spawn()
  }

  /** What of it is in memory, in bytes. */
  async residentBytes(): Promise<number> {
    const { stdout } = await run('ps', ['-o', 'rss=', '-p', String(this.#child.pid)])
    return Number(stdout) * 1024
  }
}
