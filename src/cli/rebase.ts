import type { Command } from 'commander'

import { databaseCommand, printJson, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

export function rebaseCommand(): Command {
  return databaseCommand('rebase')
    .description('after a dump was restored into another database cluster: let counters and consumers go on there')
    .option('--json', 'print JSON')
    .action((options: ConnectionOptions & { json?: true }) =>
      withConnection(options, async ({ tally }) => {
        const queues = await tally.rebase()
        if (options.json) printJson(queues)
        else if (queues.length === 0) printLine('All positions are those of this cluster already.')
        else for (const { queue, pendingEvents } of queues) printLine(`${queue}: goes on here, with ${pendingEvents.toLocaleString('en-US')} events pending.`)
      }),
    )
}
