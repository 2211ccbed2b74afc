import { CommanderError } from 'commander'

import { replayCommand } from './command.ts'

const wrongUsage = 2

try {
  await replayCommand().exitOverride().showHelpAfterError().parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : wrongUsage
  } else {
    process.stderr.write(`error: ${describe(error)}\n`)
    process.exitCode = 1
  }
}

function describe(error: unknown): string {
  // Nobody listening on any of a host's addresses: each has its own error, and all together have no message.
  if (error instanceof AggregateError && error.message === '') return error.errors.map(String).join('; ')
  return error instanceof Error ? error.message : String(error)
}
