import { Command } from 'commander'

import { startEmbeddedServer } from '../demo/embedded-server.ts'
import { Interruption, withInterruption } from '../demo/interruption.ts'
import { createPlayground, dropPlayground, likesBefore } from '../demo/playground.ts'
import { describeResults, describeSetting, formatResults, readServerFacts } from '../demo/report.ts'
import { runDemo } from '../demo/run.ts'
import { createLiveView, createPlainView, createSilentView } from '../demo/view.ts'
import type { TextView } from '../demo/view.ts'
import { createPool, negativeAnswer, printJson, printLine, wholeNumber } from './command.ts'

interface DemoCommandOptions {
  databaseUrl?: string
  schema?: string
  seconds: number
  connections: number
  json?: true
}

export function demoCommand(): Command {
  // Not databaseCommand(): without a server this one starts its own, and it never works in an installed pgtally.
  return new Command('demo')
    .description('show one celebrity post under a storm of likes: COUNT(*), UPDATE and pgtally; exit code 1 when a count was wrong')
    .option('--database-url <url>', 'the database (default: DATABASE_URL, else the usual PG* variables, else an embedded server for the time of the demo)')
    .option('--schema <name>', 'a new schema to install pgtally in, dropped at the end (default: a random name)')
    .option('--seconds <n>', 'how long each way is measured', wholeNumber(1), 7)
    .option('--connections <n>', 'how many connections like and unlike', wholeNumber(1), 16)
    .option('--json', 'print the results as JSON, and no progress')
    .action(async (options: DemoCommandOptions) => {
      const view = createView(options.json === true)
      try {
        await withInterruption((signal) => demonstrate(options, view, signal))
      } catch (error) {
        view.close()
        if (!(error instanceof Interruption)) throw error
        process.stderr.write(`${error.message}; the demo has cleaned up.\n`)
        process.exitCode = error.exitCode
      }
    })
}

function createView(json: boolean): TextView {
  if (json) return createSilentView()
  return process.stdout.isTTY ? createLiveView(process.stdout) : createPlainView(printLine)
}

async function demonstrate(options: DemoCommandOptions, view: TextView, signal: AbortSignal): Promise<void> {
  if (serverIsGiven(options)) {
    await demonstrateOn(options.databaseUrl, options, view, signal)
    return
  }
  view.waits('Starting an embedded PostgreSQL …')
  const server = await startEmbeddedServer({
    // Durable as by default. Checkpoints would come in the middle of one of the ways and not of the others.
    settings: { shared_buffers: '256MB', max_wal_size: '4GB', max_connections: String(options.connections + 30) },
  })
  try {
    await demonstrateOn(server.connectionString, options, view, signal)
  } finally {
    await server.stop()
  }
}

function serverIsGiven({ databaseUrl }: DemoCommandOptions): boolean {
  const { DATABASE_URL, PGHOST, PGHOSTADDR, PGSERVICE, PGDATABASE } = process.env
  return [databaseUrl, DATABASE_URL, PGHOST, PGHOSTADDR, PGSERVICE, PGDATABASE].some(Boolean)
}

async function demonstrateOn(databaseUrl: string | undefined, options: DemoCommandOptions, view: TextView, signal: AbortSignal): Promise<void> {
  const { connections, seconds } = options
  const pools = { control: createPool(databaseUrl), writers: createPool(databaseUrl, connections), reader: createPool(databaseUrl, 1) }
  try {
    signal.throwIfAborted()
    const server = await readServerFacts(pools.control, !serverIsGiven(options))
    view.print([...describeSetting(server, connections, seconds), ''])
    const playground = await createPlayground(pools.control, options.schema)
    try {
      const ways = await runDemo({ playground, pools, connections, seconds, signal }, view)
      if (options.json) printJson({ server, seconds, connections, likesBefore, ways })
      else view.print(['', formatResults(ways), '', ...describeResults(ways)])
      if (ways.some(({ exact }) => !exact)) process.exitCode = negativeAnswer
    } finally {
      await dropPlayground(pools.control, playground)
    }
  } finally {
    await Promise.all(Object.values(pools).map((pool) => pool.end()))
  }
}
