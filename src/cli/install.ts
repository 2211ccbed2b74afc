import type { Command } from 'commander'

import { databaseCommand, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

export function installCommand(): Command {
  return databaseCommand('install')
    .description('install pgtally in the database, or bring it up to date')
    .action((options: ConnectionOptions) =>
      withConnection(options, async ({ tally }) => {
        const { from, to } = await tally.install()
        const where = `in the schema "${tally.schema}"`
        if (from === 0) printLine(`Installed version ${to} ${where}.`)
        else if (from < to) printLine(`Upgraded ${where} from version ${from} to ${to}.`)
        else printLine(`Version ${to} is installed ${where} already.`)
      }),
    )
}
