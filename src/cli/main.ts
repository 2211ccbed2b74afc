#!/usr/bin/env node
import { Command, CommanderError } from 'commander'

import { describeError } from '../errors.ts'
import { auditCommand } from './audit.ts'
import { exitCodeFor, wrongUsage } from './command.ts'
import { consumerCommand } from './consumer.ts'
import { counterCommand } from './counter.ts'
import { demoCommand } from './demo.ts'
import { doctorCommand } from './doctor.ts'
import { drainCommand } from './drain.ts'
import { grantCommand, revokeCommand } from './grant.ts'
import { installCommand } from './install.ts'
import { rebaseCommand } from './rebase.ts'
import { reconcileCommand } from './reconcile.ts'
import { seriesCommand } from './series.ts'
import { sqlCommand } from './sql.ts'
import { statusCommand } from './status.ts'
import { topCommand } from './top.ts'
import { trendingCommand } from './trending.ts'
import { uninstallCommand } from './uninstall.ts'
import { workerCommand } from './worker.ts'
import { version } from '../version.ts'

const program = new Command('pgtally')
  .description('Exact, fast counters on plain PostgreSQL.')
  .version(version)
  .addHelpText('after', '\nExit codes: 0 success, 1 a negative answer or an error, 2 wrong usage.')
const commands = [
  installCommand(),
  uninstallCommand(),
  sqlCommand(),
  grantCommand(),
  revokeCommand(),
  counterCommand(),
  consumerCommand(),
  workerCommand(),
  drainCommand(),
  statusCommand(),
  doctorCommand(),
  auditCommand(),
  reconcileCommand(),
  seriesCommand(),
  topCommand(),
  trendingCommand(),
  rebaseCommand(),
  demoCommand(),
]
for (const command of commands) program.addCommand(command)
for (const command of [program, ...commands, ...commands.flatMap((parent) => parent.commands)]) command.exitOverride().showHelpAfterError()

try {
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : wrongUsage
  } else {
    process.stderr.write(`error: ${describeError(error)}\n`)
    process.exitCode = exitCodeFor(error)
  }
}
