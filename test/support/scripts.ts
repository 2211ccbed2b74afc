import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

/** A process of a test's own that says by lines how far it is. */
export interface ScriptProcess extends AsyncDisposable {
  readonly lines: readonly string[]
  /** Resolves with the first line that is `line`; throws when the process ends without it. */
  said(line: string): Promise<void>
  /** SIGKILL; resolves when the process is gone. */
  kill(): Promise<void>
}

export function startScript(script: URL, ...args: string[]): ScriptProcess {
  const child = spawn(process.execPath, [fileURLToPath(script), ...args], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = once(child, 'close')
  const lines: string[] = []
  const reader = createInterface(child.stdout)
  reader.on('line', (line) => lines.push(line))
  const said = async (line: string) => {
    const gone = Symbol('gone')
    while (!lines.includes(line)) {
      if ((await Promise.race([once(reader, 'line'), ended.then(() => gone)])) === gone && !lines.includes(line)) {
        throw new Error(`${script.pathname} ended without "${line}". It said: ${lines.join(', ')}`)
      }
    }
  }
  const kill = async () => {
    child.kill('SIGKILL')
    await ended
  }
  return { lines, said, kill, [Symbol.asyncDispose]: kill }
}
