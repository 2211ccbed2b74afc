import type { Command } from 'commander'

import { planInstall } from '../install/install.ts'
import { asTransaction } from '../install/script.ts'
import { databaseCommand, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

export function installCommand(): Command {
  return databaseCommand('install')
    .description('install pgtally in the database, or bring it up to date')
    .option('--dry-run', 'print the SQL that would run, and change nothing; prints nothing when all is up to date')
    .action((options: ConnectionOptions & { dryRun?: true }) =>
      withConnection(options, async ({ pool, tally }) => {
        if (options.dryRun) {
          const { script } = await planInstall(pool, tally.schema)
          if (script !== undefined) process.stdout.write(asTransaction(script))
          return
        }
        const { from, to } = await tally.install()
        const where = `in the schema "${tally.schema}"`
        if (from === 0) printLine(`Installed version ${to} ${where}.`)
        else if (from < to) printLine(`Upgraded ${where} from version ${from} to ${to}.`)
        else printLine(`Version ${to} is installed ${where} already.`)
      }),
    )
}
