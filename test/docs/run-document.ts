// Runs the blocks of one document, in a process of its own: node --import ./resolve-pgtally.ts run-document.ts STEPS [--empty]
// Says on its last line what failed, as JSON.

import { execFile } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

import { parse as parseYaml } from 'yaml'

import { splitStatements } from './blocks.ts'
import { client, pool, prepare } from './context.ts'
import type { Step } from './modules.ts'

const [stepsFile = '', ...flags] = process.argv.slice(2)
const steps = JSON.parse(await readFile(stepsFile, 'utf8')) as Step[]
const workDir = await mkdtemp(path.join(tmpdir(), 'pgtally-docs-'))

async function runSql(script: string): Promise<void> {
  const session = await pool.connect()
  try {
    for (const statement of splitStatements(script)) {
      await session.query(statement).catch((error: Error) => {
        throw new Error(`${error.message}, in: ${statement}`, { cause: error })
      })
    }
    // A transaction that a block leaves open would hold up the next one; now() stands still in it.
    const { rows } = await session.query<{ open: boolean }>('select now() <> statement_timestamp() as open')
    if (rows[0]?.open) throw new Error('it leaves its transaction open')
  } finally {
    session.release(true)
  }
}

async function check(query: string): Promise<void> {
  const { rows } = await pool.query<unknown[]>({ text: query, rowMode: 'array' })
  if (rows[0]?.[0] !== true) throw new Error(`it is not true that ${query}`)
}

async function runShell(script: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const PATH = [path.join(import.meta.dirname, 'bin'), path.dirname(process.execPath), process.env['PATH']].join(':')
    const child = execFile('bash', ['-euo', 'pipefail', '-c', script], { cwd: workDir, env: { ...process.env, PATH } }, (error, stdout, stderr) => {
      if (error) reject(new Error(`exit code ${error.code}\n${stdout}${stderr}`))
      else resolve(stdout)
    })
    child.stdin?.end()
  })
}

/** Commands and what they print; figures and the width of columns may be others. */
async function runConsole(text: string): Promise<void> {
  const comparable = (output: string) => output.replaceAll(/\d[\d,.]*/g, '0').replaceAll(/ +/g, ' ').replaceAll(/ $/gm, '').trim()
  for (const part of text.split(/^\$ /m).slice(1)) {
    const [command = '', ...expected] = part.split('\n')
    const printed = await runShell(command)
    if (comparable(printed) !== comparable(expected.join('\n'))) throw new Error(`"${command}" prints\n${printed}`)
  }
}

/** Those that `bin/npx` has left running. */
async function stopWorkers(): Promise<void> {
  for (const file of await readdir(workDir)) {
    if (file.endsWith('.pid')) process.kill(Number(await readFile(path.join(workDir, file), 'utf8')), 'SIGKILL')
  }
}

async function runStep(step: Step): Promise<void> {
  if (step.kind === 'ts') await import(step.file)
  else if (step.kind === 'sql') await runSql(step.text)
  else if (step.kind === 'check') await check(step.text)
  else if (step.kind === 'sh') await runShell(step.text)
  else if (step.kind === 'console') await runConsole(step.text)
  else if (step.kind === 'json') JSON.parse(step.text)
  else parseYaml(step.text)
}

let failure: { at: string; message: string } | undefined
let current = 'setup'
const fail = (error: unknown) => (failure ??= { at: current, message: error instanceof Error ? (error.stack ?? error.message) : String(error) })
// What a block started may fail later.
process.on('uncaughtException', fail)
try {
  if (!flags.includes('--empty')) await prepare()
  for (const step of steps) {
    current = step.at
    await runStep(step)
    if (failure !== undefined) break
  }
} catch (error) {
  fail(error)
} finally {
  await stopWorkers()
  client.release(true)
  await rm(workDir, { recursive: true, force: true })
}
console.log(JSON.stringify(failure ?? {}))
process.exit()
