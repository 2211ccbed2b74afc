import { createInterface } from 'node:readline/promises'

import type { Command } from 'commander'

import { PgtallyError } from '../errors.ts'
import { databaseCommand, negativeAnswer, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

export function uninstallCommand(): Command {
  return databaseCommand('uninstall')
    .description("remove pgtally's schema and triggers; your tables and the counts in them stay")
    .option('--yes', 'do not ask')
    .action(async (options: ConnectionOptions & { yes?: true }) => {
      if (!options.yes && !(await confirmed(options.schema))) {
        printLine('Nothing was removed.')
        process.exitCode = negativeAnswer
        return
      }
      await withConnection(options, async ({ tally }) => {
        const removed = await tally.uninstall()
        printLine(removed ? `Removed the schema "${tally.schema}".` : `There was no schema "${tally.schema}".`)
      })
    })
}

async function confirmed(schema: string): Promise<boolean> {
  if (!process.stdin.isTTY) throw new PgtallyError('INVALID_ARGUMENT', 'There is no terminal to ask on. Give --yes to remove pgtally.')
  const terminal = createInterface({ input: process.stdin, output: process.stdout })
  try {
    const answer = await terminal.question(`Remove the schema "${schema}" with its queues, events not applied yet, and counts kept in tables of its own? [y/N] `)
    return /^y(es)?$/i.test(answer.trim())
  } finally {
    terminal.close()
  }
}
