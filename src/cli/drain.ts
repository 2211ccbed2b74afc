import type { Command } from 'commander'

import { databaseCommand, duration, negativeAnswer, printJson, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

export function drainCommand(): Command {
  return databaseCommand('drain')
    .description('apply all that is pending now, then exit; exit code 1 when something could not be applied')
    .option('--timeout <time>', 'how long to try for rows that are locked (default: 30s)', duration)
    .option('--json', 'print JSON')
    .action((options: ConnectionOptions & { timeout?: number; json?: true }) =>
      withConnection(options, async ({ tally }) => {
        const result = await tally.drain(options.timeout === undefined ? {} : { timeoutMs: options.timeout })
        if (options.json) {
          printJson(result)
        } else {
          printLine(`Applied ${result.events.toLocaleString('en-US')} events.`)
          for (const { counter, error } of result.failed) printLine(`${counter} could not apply all: ${error}`)
        }
        if (result.failed.length > 0) process.exitCode = negativeAnswer
      }),
    )
}
