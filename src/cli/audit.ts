import type { Command } from 'commander'

import type { Measurement } from '../counters/measure.ts'
import { PgtallyError } from '../errors.ts'
import type { Tally } from '../tally.ts'
import { databaseCommand, negativeAnswer, printJson, printLine, withConnection, wholeNumber } from './command.ts'
import type { ConnectionOptions } from './command.ts'
import { collect, describeMeasurement, withProgress } from './measurement.ts'

interface AuditCommandOptions extends ConnectionOptions {
  key?: string[]
  sample?: number
  against?: string
  json?: true
}

export function auditCommand(): Command {
  return databaseCommand('audit')
    .description('compare the rows of the source with stored + carried + pending, while the application writes; exit code 1 when a key drifts')
    .argument('[counters...]', 'the counters (default: all that have a source)')
    .option('--key <key>', 'only this key; may be given several times', collect)
    .option('--sample <n>', 'only so many keys, taken at random', wholeNumber(1))
    .option('--against <column>', 'hold the counts against this column of the target instead of the source')
    .option('--json', 'print JSON')
    .action((names: string[], options: AuditCommandOptions) =>
      withConnection(options, async ({ tally }) => {
        const { key: keys, sample, against } = options
        if ((keys ?? against) !== undefined && names.length !== 1) throw new PgtallyError('INVALID_ARGUMENT', '--key and --against are about one counter: name it.')
        const audits: Measurement[] = []
        for (const name of names.length > 0 ? names : await countersWithSource(tally)) {
          const audit = await withProgress((onProgress) => tally.counter(name).audit({ keys, sample, against, onProgress }))
          audits.push(audit)
          if (!options.json) printLine(describeMeasurement(audit, 'drifting', against))
        }
        if (options.json) printJson(audits)
        else if (audits.length === 0) printLine('There is no counter with a source to be held against.')
        if (audits.some(({ driftingKeys }) => driftingKeys > 0)) process.exitCode = negativeAnswer
      }),
    )
}

async function countersWithSource(tally: Tally): Promise<string[]> {
  const { counters } = await tally.status()
  return counters.filter(({ source }) => source !== null).map(({ name }) => name)
}
