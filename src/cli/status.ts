import type { Command } from 'commander'

import type { AuditStatus, CounterStatus, Status } from '../status.ts'
import { databaseCommand, printJson, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'
import { formatTable } from '../table.ts'
import { formatConsumers } from './consumer.ts'

export function statusCommand(): Command {
  return databaseCommand('status')
    .description('show where every counter and queue stands; exit code 1 when something is wrong with a counter or consumer')
    .option('--json', 'print JSON')
    .action((options: ConnectionOptions & { json?: true }) =>
      withConnection(options, async ({ tally }) => {
        const status = await tally.status()
        if (options.json) printJson(status)
        else printLine(describe(status))
        const wrong = [...status.counters.filter(({ problems }) => problems.length > 0), ...[...status.counters, ...status.consumers].filter(({ lastError }) => lastError !== null)]
        if (wrong.length > 0) process.exitCode = 1
      }),
    )
}

const number = (value: number) => value.toLocaleString('en-US')
const seconds = (value: number | null) => (value === null ? '-' : `${value.toLocaleString('en-US', { maximumFractionDigits: 1 })} s`)
const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MB`

function describeAudits({ lastAudit, lastSample }: CounterStatus): string {
  const describeOne = ({ at, checkedKeys, driftingKeys, corrected }: AuditStatus, keys: string) =>
    `${at.slice(0, 16).replace('T', ' ')}: ${number(driftingKeys)} of ${number(checkedKeys)} ${keys} ${corrected ? 'corrected' : 'drifting'}`
  return [...(lastAudit ? [describeOne(lastAudit, 'keys')] : []), ...(lastSample ? [describeOne(lastSample, 'sampled keys')] : [])].join('; ') || '-'
}

function describeBuckets(counters: readonly CounterStatus[]): string[] {
  const rows = counters.flatMap(({ name, buckets, lateEvents, futureEvents }) =>
    buckets.map(({ width, retain, timeZone, since }, index) => [
      name,
      width,
      retain ?? 'forever',
      timeZone ?? '-',
      since?.slice(0, 16).replace('T', ' ') ?? '-',
      ...(index === 0 ? [number(lateEvents), number(futureEvents)] : ['', '']),
    ]),
  )
  return rows.length === 0 ? [] : ['', formatTable(['buckets of', 'width', 'retained', 'time zone', 'kept since', 'late events', 'future events'], rows, [5, 6])]
}

function describe({ counters, queues, consumers, oldestTransactionSeconds }: Status): string {
  if (counters.length + queues.length === 0) return 'There are no counters yet. Create one with `pgtally counter create`.'
  return [
    formatTable(
      ['counter', 'target', 'pending', 'lag', 'carried', 'events', 'batches', 'dropped', 'last audit'],
      counters.map((counter) => [
        counter.name,
        counter.target,
        number(counter.pendingEvents),
        seconds(counter.lagSeconds),
        number(counter.carriedKeys),
        number(counter.events),
        number(counter.batches),
        number(counter.droppedEvents),
        describeAudits(counter),
      ]),
      [2, 3, 4, 5, 6, 7],
    ),
    '',
    formatTable(
      ['queue', 'keys', 'consumers', 'pending', 'slots (* is written)'],
      queues.map((queue) => [
        queue.name,
        queue.keyType,
        queue.consumers.join(', ') || '-',
        number(queue.pendingEvents),
        queue.slotBytes.map((bytes, slot) => `${mebibytes(bytes)}${slot === queue.currentSlot ? '*' : ''}`).join('  '),
      ]),
      [3],
    ),
    ...(consumers.length === 0 ? [] : ['', formatConsumers(consumers)]),
    ...describeBuckets(counters),
    '',
    `Oldest open transaction: ${seconds(oldestTransactionSeconds)}`,
    ...[...counters, ...consumers].flatMap(({ name, lastError, lastErrorAt }) => (lastError === null ? [] : [`\n${name} cannot go on since ${lastErrorAt}: ${lastError}`])),
    ...counters.flatMap(({ name, problems }) => problems.map((problem) => `\n${name}: ${problem}`)),
  ].join('\n')
}
