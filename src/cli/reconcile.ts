import type { Command } from 'commander'

import { PgtallyError } from '../errors.ts'
import { databaseCommand, negativeAnswer, printJson, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'
import { collect, describeMeasurement, withProgress } from './measurement.ts'

interface ReconcileCommandOptions extends ConnectionOptions {
  key?: string[]
  dryRun?: true
  restart?: true
  json?: true
}

export function reconcileCommand(): Command {
  return databaseCommand('reconcile')
    .description('audit a counter and correct each drift, while the application writes; goes on where an earlier one was interrupted')
    .argument('<counter>', 'the name of the counter')
    .option('--key <key>', 'only this key; may be given several times', collect)
    .option('--restart', 'begin with the first key, even if an earlier one was interrupted')
    .option('--dry-run', 'correct nothing, only print what would be corrected; exit code 1 when there is anything')
    .option('--json', 'print JSON')
    .action((name: string, options: ReconcileCommandOptions) =>
      withConnection(options, async ({ tally }) => {
        const { key: keys, dryRun, restart } = options
        if (restart && (keys ?? dryRun) !== undefined) throw new PgtallyError('INVALID_ARGUMENT', '--restart is about correcting all keys: it does not go with --key or --dry-run.')
        const counter = tally.counter(name)
        const measurement = await withProgress((onProgress) =>
          dryRun ? counter.audit({ keys, onProgress }) : counter.reconcile({ keys, restart, onProgress }),
        )
        if (options.json) printJson(measurement)
        else printLine(describeMeasurement(measurement, dryRun ? 'to be corrected' : 'corrected'))
        if (dryRun && measurement.driftingKeys > 0) process.exitCode = negativeAnswer
      }),
    )
}
