import type { Command } from 'commander'

import { formatTable } from '../table.ts'
import { interval, printJson, printLine, withConnection } from './command.ts'
import { keyListCommand } from './key-list.ts'
import type { KeyListOptions } from './key-list.ts'

export function topCommand(): Command {
  return keyListCommand('top')
    .description('list the keys with the highest counts, of all time or of the last hours')
    .option('--window <time>', 'only what was counted in the buckets that begin in the last so long, such as 1h', interval)
    .addHelpText('after', '\nExample:\n  pgtally top post_likes --window "7 days" --where category_id=7')
    .action((name: string, { window, limit, where, json, ...connection }: KeyListOptions & { window?: string }) =>
      withConnection(connection, async ({ tally }) => {
        const keys = await tally.counter(name).top({ limit, window, where })
        if (json) printJson(keys)
        else if (keys.length === 0) printLine('There is no key with a count.')
        else printLine(formatTable(['key', 'count'], keys.map(({ key, count }) => [key, count.toLocaleString('en-US')]), [1]))
      }),
    )
}
