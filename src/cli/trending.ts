import type { Command } from 'commander'

import { PgtallyError } from '../errors.ts'
import { formatTable } from '../table.ts'
import { interval, printJson, printLine, wholeNumber, withConnection } from './command.ts'
import { describeScore, keyListCommand } from './key-list.ts'
import type { KeyListOptions } from './key-list.ts'

interface TrendingCommandOptions extends KeyListOptions {
  halfLife?: string
  baseline?: string
  windows?: number
  minCount?: number
}

export function trendingCommand(): Command {
  return keyListCommand('trending')
    .description('list the keys on the rise, by counts in which what is recent weighs more, or against what was to be expected')
    .option('--half-life <time>', "after what time an event weighs half, such as 6h: one of those in the counter's definition (default: the first)", interval)
    .option('--baseline <time>', 'hold the last so long, such as 1h, against the windows before it, instead', interval)
    .option('--windows <n>', 'so many of them, with --baseline (default: 24)', wholeNumber(1))
    .option('--min-count <n>', 'leave out what came less often in the last one, with --baseline (default: 10)', wholeNumber(0))
    .addHelpText('after', '\nExample:\n  pgtally trending tag_uses --baseline 1h --windows 48')
    .action((name: string, { halfLife, baseline, windows, minCount, limit, where, json, ...connection }: TrendingCommandOptions) =>
      withConnection(connection, async ({ tally }) => {
        if (baseline !== undefined && halfLife !== undefined) throw new PgtallyError('INVALID_ARGUMENT', 'Give either --half-life or --baseline.')
        if (baseline === undefined && (windows ?? minCount) !== undefined) throw new PgtallyError('INVALID_ARGUMENT', '--windows and --min-count are about --baseline: give it, too.')
        const counter = tally.counter(name)
        if (baseline === undefined) {
          const keys = await counter.trending({ halfLife, limit, where })
          print(json, keys, ['key', 'score'], ({ key, score }) => [key, describeScore(score)])
        } else {
          const keys = await counter.trending({ baseline: { window: baseline, windows, minCount }, limit, where })
          print(json, keys, ['key', 'score', 'count', 'expected'], ({ key, score, count, expected }) => [key, describeScore(score), count.toLocaleString('en-US'), describeScore(expected)])
        }
      }),
    )
}

function print<T>(json: true | undefined, keys: T[], head: string[], row: (key: T) => string[]): void {
  if (json) printJson(keys)
  else if (keys.length === 0) printLine('Nothing is trending.')
  else printLine(formatTable(head, keys.map(row), [1, 2, 3]))
}
