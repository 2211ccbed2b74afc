import { execFile } from 'node:child_process'
import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'

const cache = path.resolve(import.meta.dirname, '../../node_modules/.cache/pgtally')

/** Installs an npm package of that version into a directory of its own, where it stays for the next time. Undefined when it cannot be had. */
async function installed(name: string, range: string): Promise<string | undefined> {
  const directory = path.join(cache, `${name.replaceAll('/', '-')}-${range}`)
  await mkdir(directory, { recursive: true })
  try {
    await promisify(execFile)('npm', ['install', '--silent', '--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund', '--prefix', directory, `${name}@${range}`])
    return path.join(directory, 'node_modules', name)
  } catch {
    return undefined
  }
}

/** The compiler of that version, as `[program, ...arguments]`. */
export async function findTypescript(range: string): Promise<string[] | undefined> {
  const directory = await installed('typescript', range)
  return directory === undefined ? undefined : [process.execPath, path.join(directory, 'bin/tsc')]
}

/** The program of that version of Node.js. */
export async function findNode(range: string): Promise<string | undefined> {
  // The packages that the npm package `node` chooses from.
  const platform = process.platform === 'darwin' && process.arch === 'arm64' ? 'bin-darwin-arm64' : `${process.platform}-${process.arch}`
  const directory = await installed(`node-${platform}`, range)
  return directory === undefined ? undefined : path.join(directory, process.platform === 'win32' ? 'bin/node.exe' : 'bin/node')
}
