import { randomInt } from 'node:crypto'

import { Command, InvalidArgumentError, Option } from 'commander'

// Not part of pgtally's public names: this example brings its own server where you name none.
import { startEmbeddedServer } from '../../src/demo/embedded-server.ts'
import { openDump } from './dump.ts'
import { replay } from './replay.ts'
import { describeResult, ProgressDisplay } from './report.ts'

interface CommandOptions {
  databaseUrl?: string
  connections: number
  seed?: number
  keep?: true
}

export function replayCommand(): Command {
  return new Command('stack-exchange')
    .description('Replays the votes of a Stack Exchange site against counters for each post and each tag, and holds them against the dump: its Score, and its votes by hour, day and month.')
    .argument('<directory>', 'with the Posts.xml and Votes.xml of one site')
    .addOption(new Option('--database-url <url>', 'the database, in which schemas of its own are made and dropped again (default: an embedded server)').env('DATABASE_URL'))
    .option('--connections <n>', 'how many connections cast votes at the same time', wholeNumber(1, 1000), 8)
    .option('--seed <n>', 'the same votes are cast together and withdrawn again (default: a new one)', wholeNumber(0, 2 ** 31 - 1))
    .option('--keep', 'leave the schemas in the database')
    .addHelpText('after', '\nExit codes: 0 every counter equals the votes cast and every bucket those of its time, 1 one does not or there was an error, 2 wrong usage.')
    .action(run)
}

async function run(directory: string, options: CommandOptions, command: Command): Promise<void> {
  const { connections, seed = randomInt(2 ** 31), keep = false } = options
  // An environment variable may be set and empty.
  const givenUrl = options.databaseUrl || undefined
  if (keep && givenUrl === undefined) command.error('error: --keep needs --database-url, as the embedded server is removed at the end.')
  await openDump(directory)

  const interrupted = new AbortController()
  const onSignal = (name: NodeJS.Signals) => {
    // The second one: whoever sends it does not want to wait.
    if (interrupted.signal.aborted) process.exit(130)
    process.stderr.write('\nRemoving what was made here; once more to stop at once.\n')
    interrupted.abort(new Error(`Interrupted by ${name}.`))
  }
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal)

  const display = new ProgressDisplay()
  const server = givenUrl === undefined ? await startEmbeddedServer({ settings: { max_connections: String(connections + 50) } }) : undefined
  try {
    print(`Replaying ${directory} from ${connections} connections with the seed ${seed}`)
    const databaseUrl = givenUrl ?? server?.connectionString ?? ''
    const result = await replay({ directory, databaseUrl, connections, seed, keep, signal: interrupted.signal, onProgress: (progress) => display.show(progress) })
    display.end()
    print(`\n${describeResult(result)}`)
    if (keep) print(`\nKept in the schemas ${result.schemas.tables} and ${result.schemas.tally}.`)
    if (result.problems.length > 0) process.exitCode = 1
  } finally {
    display.end()
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal)
    await server?.stop()
  }
}

function print(text: string): void {
  process.stdout.write(`${text}\n`)
}

function wholeNumber(smallest: number, greatest: number): (text: string) => number {
  return (text) => {
    const number = Number(text)
    if (!Number.isSafeInteger(number) || number < smallest || number > greatest) throw new InvalidArgumentError(`It must be a whole number from ${smallest} to ${greatest}.`)
    return number
  }
}
