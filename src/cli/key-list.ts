import { InvalidArgumentError } from 'commander'
import type { Command } from 'commander'

import { databaseCommand, wholeNumber } from './command.ts'
import type { ConnectionOptions } from './command.ts'

export interface KeyListOptions extends ConnectionOptions {
  limit: number
  where?: Record<string, string>
  json?: true
}

/** A command that lists keys of a counter, highest first. */
export function keyListCommand(name: string): Command {
  return databaseCommand(name)
    .argument('<counter>', 'the counter')
    .option('--limit <n>', 'how many keys, up to 10,000', wholeNumber(1), 10)
    .option('--where <column=value>', 'only keys whose row in the target has this value; may be given several times', condition)
    .option('--json', 'print JSON')
}

function condition(text: string, earlier: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf('=')
  if (at < 1) throw new InvalidArgumentError('It must be a column of the target and a value, such as category_id=7.')
  return { ...earlier, [text.slice(0, at)]: text.slice(at + 1) }
}

/** For people, so that it has no more decimals than tell something. */
export function describeScore(score: number): string {
  return score.toLocaleString('en-US', { minimumFractionDigits: 1, maximumFractionDigits: 1 })
}
