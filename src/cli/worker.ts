import { constants } from 'node:os'

import { Option } from 'commander'
import type { Command } from 'commander'
import { pino } from 'pino'

import { PgtallyError, describeError } from '../errors.ts'
import type { HttpServer } from '../http.ts'
import type { AnyConsumerDefinition, ConsumerDefinition } from '../queue/definition.ts'
import { createTally } from '../tally.ts'
import { workerDefaults } from '../worker/worker.ts'
import { createPool, databaseCommand, negativeAnswer, wholeNumber } from './command.ts'
import type { ConnectionOptions } from './command.ts'
import { loadModule } from './worker-module.ts'

const sameCtrlCMs = 200
/** One to ask whether the database is there, one to ask where it stands, which may take a while. */
const httpConnections = 2

interface WorkerCommandOptions extends ConnectionOptions {
  pollInterval: number
  idlePollInterval: number
  concurrency: number
  maxBatchEvents: number
  module?: string
  notify?: true
  logLevel: string
  http?: number
  httpHost?: string
  httpToken?: string
}

export function workerCommand(): Command {
  return databaseCommand('worker')
    .description('apply events and empty slots until SIGTERM or SIGINT; run as many as you like')
    .option('--poll-interval <ms>', 'time between two looks for new events', wholeNumber(1), workerDefaults.pollIntervalMs)
    .option('--idle-poll-interval <ms>', 'the same while there is nothing to do', wholeNumber(1), workerDefaults.idlePollIntervalMs)
    .option('--concurrency <n>', 'how many counters are applied at a time', wholeNumber(1), workerDefaults.concurrency)
    .option('--max-batch-events <n>', 'where a batch is cut', wholeNumber(1), workerDefaults.maxBatchEvents)
    .option('--module <file>', 'also run the consumers that this module exports, and tell its onApplied')
    .option('--notify', 'NOTIFY on the channel that is named like the schema when stored counts have changed, once for each commit')
    .option('--http <port>', 'serve a dashboard at /, and /metrics, /healthz and /readyz, on this port', wholeNumber(0, 65_535))
    .option('--http-host <host>', 'the name or address to listen on (default: 127.0.0.1, this machine only)')
    .addOption(new Option('--http-token <token>', 'ask for this token, except at /healthz and /readyz').env('PGTALLY_HTTP_TOKEN'))
    .addOption(new Option('--log-level <level>', 'how much to log, as JSON lines').choices(['debug', 'info', 'warn', 'silent']).default('info'))
    .action(runWorker)
}

async function runWorker(options: WorkerCommandOptions): Promise<void> {
  if (options.httpHost !== undefined && options.http === undefined) throw new PgtallyError('INVALID_ARGUMENT', '--http-host says where --http PORT listens. Give that, too.')
  const { pollInterval: pollIntervalMs, idlePollInterval: idlePollIntervalMs, concurrency, maxBatchEvents, notify = false } = options
  const logger = pino({ level: options.logLevel, base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime })
  const pool = createPool(options.databaseUrl, poolSize(concurrency))
  const tally = createTally({ pool, schema: options.schema })
  try {
    const { consumers = [], onApplied } = options.module === undefined ? {} : await loadModule(options.module, { tally, pool, logger })
    // The pool had to be there before the module could say what it needs.
    pool.options.max = poolSize(concurrency, consumers) + (options.http === undefined ? 0 : httpConnections)
    const worker = tally.worker({ pollIntervalMs, idlePollIntervalMs, concurrency, maxBatchEvents, notify, onApplied, logger })
    const running = consumers.map((definition) => ({ definition, consumer: tally.consumer(definition as ConsumerDefinition, { logger }) }))
    // One that cannot go on does not stop the others.
    const ended = running.map(({ definition: { queue, name }, consumer }) =>
      consumer.done.catch((error: unknown) => {
        logger.error({ queue, consumer: name, error: describeError(error) }, 'the consumer has ended')
        process.exitCode = negativeAnswer
      }),
    )
    let signalledAt: number | undefined
    const stop = () => {
      for (const { consumer } of running) consumer.stop().catch(() => {})
      worker.stop().catch(() => {})
    }
    const onSignal = (signal: NodeJS.Signals) => {
      const sinceFirst = performance.now() - (signalledAt ?? Number.NaN)
      // npm passes on a Ctrl-C that its child had from the terminal already: that is one, not two.
      if (signal === 'SIGINT' && sinceFirst < sameCtrlCMs) return
      // The second one: whatever is in hand is rolled back by the server and taken again.
      if (signalledAt !== undefined) process.exit(128 + constants.signals[signal])
      signalledAt = performance.now()
      logger.info({ signal }, 'finishing the batches in hand')
      stop()
    }
    process.on('SIGTERM', onSignal).on('SIGINT', onSignal)
    const { http: port, httpHost: host, httpToken: token } = options
    const services = [worker, ...running.map(({ consumer }) => consumer)]
    let server: HttpServer | undefined
    try {
      if (port !== undefined) {
        // Not loaded where nobody needs it.
        const { serveHttp } = await import('../http.ts')
        server = await serveHttp(tally, services, { port, host, token, logger })
      }
      await worker.done
    } finally {
      stop()
      await Promise.allSettled([worker.done, ...ended])
      // Last, so that it says until the end what is still in hand.
      await server?.close()
    }
  } finally {
    await pool.end()
  }
}

/** One connection to look with; for each counter at work one to apply and one to wait for a locked row with; for each batch at work one to look and one to handle it with. */
function poolSize(concurrency: number, consumers: readonly AnyConsumerDefinition[] = []): number {
  return 1 + 2 * concurrency + consumers.reduce((sum, consumer) => sum + 2 * (consumer.concurrency ?? 1), 0)
}
