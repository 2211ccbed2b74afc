import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'

import { vi } from 'vitest'

/** The module that is the command line. */
export const commandLine = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))

/** Runs a command in this process, which takes no time to start, on the database given. One at a time. */
export async function here(connectionString: string, ...args: string[]) {
  const output = { stdout: '', stderr: '' }
  const capture = (name: 'stdout' | 'stderr') => vi.spyOn(process[name], 'write').mockImplementation((text) => ((output[name] += String(text)), true))
  const spies = [capture('stdout'), capture('stderr')]
  const { argv } = process
  process.argv = [process.execPath, commandLine, ...args]
  vi.stubEnv('DATABASE_URL', connectionString)
  try {
    // What runs is the module itself; each time it has another name, so that it is evaluated again.
    await import(/* @vite-ignore */ `../../src/cli/main.ts?${randomUUID()}`)
    return { code: process.exitCode ?? 0, ...output }
  } finally {
    process.argv = argv
    process.exitCode = undefined
    vi.unstubAllEnvs()
    for (const spy of spies) spy.mockRestore()
  }
}
