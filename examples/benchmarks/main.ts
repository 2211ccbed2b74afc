import { InvalidArgumentError, Command } from 'commander'

import { wholeNumber } from '../../src/cli/command.ts'
import { Interruption, withInterruption } from '../../src/demo/interruption.ts'
import { describeMachine, fullExtent, openServer, quickExtent, withBench } from './bench.ts'
import { writeCharts } from './charts.ts'
import { writeJson } from './json.ts'
import { formatMachine, formatResult } from './report.ts'
import type { Result } from './results.ts'
import { scenarios } from './scenarios/all.ts'

interface Options {
  databaseUrl?: string
  only: string[]
  quick?: true
  seconds?: number
  repetitions?: number
  heldSeconds?: number
  rotationSeconds?: number
  json?: string
  charts?: string
  pgque?: string
}

const print = (text: string) => process.stdout.write(`${text}\n`)
const progress = (text: string) => process.stderr.write(`${text}\n`)
// Whoever has had enough of the progress shall have the results all the same.
process.stderr.on('error', () => {})

function scenarioName(name: string, names: string[]): string[] {
  if (scenarios.some((scenario) => scenario.name === name)) return [...names, name]
  throw new InvalidArgumentError(`There are ${scenarios.map((scenario) => scenario.name).join(', ')}.`)
}

function seconds(text: string): number {
  const number = Number(text)
  if (!(number > 0)) throw new InvalidArgumentError('It must be a number of seconds.')
  return number
}

async function bench({ databaseUrl, only, quick, json, charts, pgque = process.env['PGQUE_SQL'], ...extents }: Options, signal: AbortSignal): Promise<void> {
  const extent = { ...(quick ? quickExtent : fullExtent), ...extents }
  progress(databaseUrl === undefined ? 'starting an embedded server' : 'connecting to the given server')
  await using server = await openServer(databaseUrl)
  const machine = await describeMachine(server)
  print(formatMachine(machine))
  const results: Result[] = []
  const failures: string[] = []
  for (const { name, run } of scenarios) {
    if (only.length > 0 && !only.includes(name)) continue
    const began = performance.now()
    try {
      const found = await withBench(server, { ...extent, pgqueFile: pgque, signal, progress }, run)
      for (const result of found) print(formatResult(result))
      results.push(...found)
      failures.push(...found.flatMap(({ failed = [] }) => failed.map(({ name: failed_ }) => `${name}: ${failed_}`)))
    } catch (error) {
      signal.throwIfAborted()
      failures.push(name)
      progress(`${name} FAILED: ${error instanceof Error ? error.stack : error}`)
    }
    progress(`${name} took ${Math.round((performance.now() - began) / 1000)} s`)
    // After each, so that an interrupted run leaves what it had.
    if (json !== undefined) await writeJson(json, { machine, extent, results })
    if (charts !== undefined) await writeCharts(charts, results)
  }
  if (failures.length > 0) {
    progress(`FAILED: ${failures.join('; ')}`)
    process.exitCode = 1
  }
}

await new Command('bench')
  .description('Measures pgtally beside the bare statements and other ways to count likes. Results on stdout, progress on stderr; exit code 1 when something failed or counted wrong.')
  .option('--database-url <url>', 'a server to create a database on, as superuser (default: an embedded one)')
  .option('--only <name>', 'run this scenario; may be given several times', scenarioName, [])
  .option('--quick', 'a short look at everything')
  .option('--seconds <n>', `how long each rate is measured (default: ${fullExtent.seconds}; --quick: ${quickExtent.seconds})`, seconds)
  .option('--repetitions <n>', `how often, in turn with the others (default: ${fullExtent.repetitions}; --quick: ${quickExtent.repetitions})`, wholeNumber(1))
  .option('--held-seconds <n>', `how long a transaction is held open (default: ${fullExtent.heldSeconds}; --quick: ${quickExtent.heldSeconds})`, seconds)
  .option('--rotation-seconds <n>', `how long a rotation period is (default: ${fullExtent.rotationSeconds}; --quick: ${quickExtent.rotationSeconds})`, seconds)
  .option('--json <file>', 'write everything that was measured')
  .option('--charts <directory>', 'draw SVG charts')
  .option('--pgque <file>', "PgQue's pgque.sql (default: PGQUE_SQL)")
  .addHelpText('after', `\nScenarios:\n${scenarios.map(({ name, description }) => `  ${name.padEnd(16)}${description}`).join('\n')}`)
  .action(async (options: Options) => {
    try {
      await withInterruption((signal) => bench(options, signal))
    } catch (error) {
      if (!(error instanceof Interruption)) throw error
      progress(`${error.message}; everything is stopped.`)
      process.exitCode = error.exitCode
    }
  })
  .parseAsync()
