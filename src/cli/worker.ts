import { constants } from 'node:os'

import { Option } from 'commander'
import type { Command } from 'commander'
import { pino } from 'pino'

import { createTally } from '../tally.ts'
import { workerDefaults } from '../worker/worker.ts'
import { createPool, databaseCommand, wholeNumber } from './command.ts'
import type { ConnectionOptions } from './command.ts'

const sameCtrlCMs = 200

interface WorkerCommandOptions extends ConnectionOptions {
  pollInterval: number
  idlePollInterval: number
  concurrency: number
  maxBatchEvents: number
  notify?: true
  logLevel: string
}

export function workerCommand(): Command {
  return databaseCommand('worker')
    .description('apply events and empty slots until SIGTERM or SIGINT; run as many as you like')
    .option('--poll-interval <ms>', 'time between two looks for new events', wholeNumber(1), workerDefaults.pollIntervalMs)
    .option('--idle-poll-interval <ms>', 'the same while there is nothing to do', wholeNumber(1), workerDefaults.idlePollIntervalMs)
    .option('--concurrency <n>', 'how many counters are applied at a time', wholeNumber(1), workerDefaults.concurrency)
    .option('--max-batch-events <n>', 'where a batch is cut', wholeNumber(1), workerDefaults.maxBatchEvents)
    .option('--notify', 'NOTIFY on the channel that is named like the schema when stored counts have changed, once for each commit')
    .addOption(new Option('--log-level <level>', 'how much to log, as JSON lines').choices(['debug', 'info', 'warn', 'silent']).default('info'))
    .action(runWorker)
}

async function runWorker(options: WorkerCommandOptions): Promise<void> {
  const { pollInterval: pollIntervalMs, idlePollInterval: idlePollIntervalMs, concurrency, maxBatchEvents, notify = false } = options
  // One connection to look with, and one for each counter at work to apply and one to wait for a locked row with.
  const pool = createPool(options.databaseUrl, 1 + 2 * concurrency)
  const logger = pino({ level: options.logLevel, base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime })
  try {
    const worker = createTally({ pool, schema: options.schema }).worker({ pollIntervalMs, idlePollIntervalMs, concurrency, maxBatchEvents, notify, logger })
    let signalledAt: number | undefined
    const onSignal = (signal: NodeJS.Signals) => {
      const sinceFirst = performance.now() - (signalledAt ?? Number.NaN)
      // npm passes on a Ctrl-C that its child had from the terminal already: that is one, not two.
      if (signal === 'SIGINT' && sinceFirst < sameCtrlCMs) return
      // The second one: whatever is in hand is rolled back by the server and taken again.
      if (signalledAt !== undefined) process.exit(128 + constants.signals[signal])
      signalledAt = performance.now()
      logger.info({ signal }, 'finishing the batches in hand')
      worker.stop().catch(() => {})
    }
    process.on('SIGTERM', onSignal).on('SIGINT', onSignal)
    await worker.done
  } finally {
    await pool.end()
  }
}
