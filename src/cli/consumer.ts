import { Command } from 'commander'

import { formatTable } from '../table.ts'
import type { Queue } from '../queue/queue.ts'
import type { ConsumerStatus } from '../status.ts'
import { databaseCommand, duration, printJson, printLine, withConnection, wholeNumber } from './command.ts'
import type { ConnectionOptions } from './command.ts'
import { collect } from './measurement.ts'

type Options = ConnectionOptions & { json?: true; number?: string[]; limit: number; ago: number }

export function consumerCommand(): Command {
  const command = new Command('consumer').description("manage a queue's consumers and their dead letters")
  const subcommands = [
    listCommand(),
    onConsumer('register', 'make a consumer that is given every event from now on', async (queue, name) =>
      (await queue.register(name)) ? `Registered the consumer "${name}".` : `The consumer "${name}" is there already.`,
    ),
    onConsumer('unregister', 'remove a consumer with its position, its failed events and its dead letters', async (queue, name) => {
      await queue.unregister(name)
      return `Unregistered the consumer "${name}".`
    }),
    onConsumer('pause', 'give it no batch any more; events wait', async (queue, name) => ((await queue.pause(name)) ? `Paused "${name}".` : `"${name}" was paused already.`)),
    onConsumer('resume', 'give it batches again', async (queue, name) => ((await queue.resume(name)) ? `Resumed "${name}".` : `"${name}" was not paused.`)),
    onConsumer('seek', 'set it back in time, as far as events are kept', async (queue, name, { ago }) => `"${name}" has ${plural(await queue.seek(name, new Date(Date.now() - ago)), 'event')} before it.`)
      .requiredOption('--ago <time>', 'how far, such as 30m', duration),
    onConsumer('skip', 'pass over everything that is pending', async (queue, name) => `"${name}" has passed over ${plural(await queue.skip(name), 'event')}.`),
    deadLettersCommand(),
    withNumbers(onConsumer('replay', 'give dead letters to the consumer again', async (queue, name, { number }) => `Given again: ${plural(await queue.replay(name, number), 'dead letter')}.`)),
    withNumbers(onConsumer('purge', 'remove dead letters for good', async (queue, name, { number }) => `Removed: ${plural(await queue.purge(name, number), 'dead letter')}.`)),
  ]
  for (const subcommand of subcommands) command.addCommand(subcommand)
  return command
}

const plural = (count: number, noun: string) => `${count.toLocaleString('en-US')} ${noun}${count === 1 ? '' : 's'}`

function withNumbers(command: Command): Command {
  return command.option('--number <number>', 'only this dead letter; may be given several times (default: all)', collect)
}

function onConsumer(name: string, description: string, work: (queue: Queue, consumer: string, options: Options) => Promise<string>): Command {
  return databaseCommand(name)
    .description(description)
    .argument('<queue>', 'the name of the queue')
    .argument('<consumer>', 'the name of the consumer')
    .action((queue: string, consumer: string, options: Options) => withConnection(options, async ({ tally }) => printLine(await work(tally.queue(queue), consumer, options))))
}

export function formatConsumers(consumers: readonly ConsumerStatus[]): string {
  return formatTable(
    ['queue', 'consumer', 'pending', 'lag', 'open batches', 'to be retried', 'dead letters', 'state'],
    consumers.map(({ queue, name, pendingEvents, lagSeconds, openBatches, retryingEvents, deadLetters, pausedAt, lastError }) => [
      queue,
      name,
      pendingEvents.toLocaleString('en-US'),
      `${lagSeconds.toLocaleString('en-US', { maximumFractionDigits: 1 })} s`,
      String(openBatches),
      retryingEvents.toLocaleString('en-US'),
      deadLetters.toLocaleString('en-US'),
      pausedAt !== null ? 'paused' : lastError !== null ? 'failing' : 'fine',
    ]),
    [2, 3, 4, 5, 6],
  )
}

function listCommand(): Command {
  return databaseCommand('list')
    .description('list the consumers that are not counters, and where they stand')
    .option('--json', 'print JSON')
    .action((options: Options) =>
      withConnection(options, async ({ tally }) => {
        const { consumers } = await tally.status()
        if (options.json) printJson(consumers)
        else if (consumers.length === 0) printLine('There are no consumers.')
        else printLine(formatConsumers(consumers))
      }),
    )
}

function deadLettersCommand(): Command {
  return databaseCommand('dead-letters')
    .description('list the events that a consumer was not able to handle, oldest first')
    .argument('<queue>', 'the name of the queue')
    .argument('<consumer>', 'the name of the consumer')
    .option('--limit <n>', 'how many at most', wholeNumber(1), 100)
    .option('--json', 'print JSON')
    .action((queue: string, consumer: string, options: Options) =>
      withConnection(options, async ({ tally }) => {
        const letters = await tally.queue(queue).deadLetters(consumer, options)
        if (options.json) printJson(letters)
        else if (letters.length === 0) printLine('There are no dead letters.')
        else {
          printLine(
            formatTable(
              ['number', 'key', 'delta', 'data', 'attempts', 'failed at', 'reason'],
              letters.map(({ number, key, delta, data, attempts, failedAt, reason }) => [number, key, delta, JSON.stringify(data), String(attempts), failedAt, reason]),
              [0, 2, 4],
            ),
          )
        }
      }),
    )
}
