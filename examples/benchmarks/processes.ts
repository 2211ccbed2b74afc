import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'

const patienceMs = 10_000
const lastLines = 5

/** A process that goes on until it is disposed of. */
export interface Process extends AsyncDisposable {
  readonly pid: number
  /** Throws when it has ended by itself, with what it said last. */
  check(): void
}

/** Starts a module as a process; resolves with its first line of output, which says that it has begun to work. */
export async function startProcess(module: URL, args: readonly string[], onLine: (line: string) => void = () => {}): Promise<Process> {
  const name = module.pathname.split('/').slice(-2).join('/')
  // The first import ends it when this process ends, in whatever way.
  const child = spawn(process.execPath, ['--import', new URL('consumers/end-with-parent.ts', import.meta.url).href, module.pathname, ...args], { stdio: 'pipe' })
  const said: string[] = []
  child.stderr.on('data', (chunk: Buffer) => {
    said.push(...chunk.toString().split('\n').filter(Boolean))
    said.splice(0, said.length - lastLines)
  })
  const exited = once(child, 'exit')
  const lines = createInterface(child.stdout)
  lines.on('line', onLine)
  const ended = () => child.exitCode !== null || child.signalCode !== null
  const check = () => {
    if (ended()) throw new Error(`The process ${name} ended by itself: ${said.join(' ') || `exit code ${child.exitCode}`}`)
  }
  await Promise.race([once(lines, 'line'), exited])
  check()
  return {
    pid: child.pid ?? 0,
    check,
    async [Symbol.asyncDispose]() {
      const deadline = setTimeout(() => child.kill('SIGKILL'), patienceMs)
      if (!ended()) child.kill('SIGTERM')
      await exited
      clearTimeout(deadline)
    },
  }
}
