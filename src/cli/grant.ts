import type { Command } from 'commander'

import type { Access } from '../install/access.ts'
import { databaseCommand, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

interface RoleOptions extends ConnectionOptions {
  writer?: string[]
  reader?: string[]
  worker?: string[]
}

const named = ({ writer, reader, worker }: RoleOptions): Access => ({ writers: writer, readers: reader, workers: worker })

function accessCommand(name: string): Command {
  return databaseCommand(name)
    .option('--writer <role...>', 'may add events with add(); a role that only writes to a source needs nothing')
    .option('--reader <role...>', 'may read counts, status and dead letters, and audit')
    .option('--worker <role...>', 'may run `pgtally worker` and consumers')
}

export function grantCommand(): Command {
  return accessCommand('grant')
    .description('give existing roles the rights on pgtally that they need, also on counters that are created later')
    .action((options: RoleOptions) =>
      withConnection(options, async ({ tally }) => {
        const { missing } = await tally.grant(named(options))
        printLine('Granted.')
        if (missing.length > 0) printLine(['', 'Still missing on your own tables; run as their owner:', ...missing.map((statement) => `  ${statement};`)].join('\n'))
      }),
    )
}

export function revokeCommand(): Command {
  return accessCommand('revoke')
    .description('take back what `pgtally grant` has given')
    .action((options: RoleOptions) =>
      withConnection(options, async ({ tally }) => {
        await tally.revoke(named(options))
        printLine('Revoked.')
      }),
    )
}
