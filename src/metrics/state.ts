import type { Status } from '../status.ts'
import type { Labels, Metric } from './metric.ts'

/** A metric of the database: the same from whichever process it is asked for. */
export interface StateMetric extends Metric {
  kind: 'counter' | 'gauge'
  /** Values by labels. */
  read(status: Status): readonly (readonly [labels: Labels, value: number])[]
}

/** Undefined where there is nothing to be said. */
type Definition<T> = [kind: 'counter' | 'gauge', name: string, unit: string, help: string, value: (of: T) => number | undefined]

type Counter = Status['counters'][number]
type Queue = Status['queues'][number]
type Consumer = Status['consumers'][number]

const counters: Definition<Counter>[] = [
  ['gauge', 'pending_events', '{event}', 'Events that have committed and are not applied yet.', (counter) => counter.pendingEvents],
  ['gauge', 'lag', 's', 'Age of the oldest event that is pending or carried; 0 when there is none.', (counter) => counter.lagSeconds],
  ['gauge', 'carried_keys', '{key}', 'Keys of which something waits for a locked row.', (counter) => counter.carriedKeys],
  ['counter', 'events', '{event}', 'Events applied, by whichever worker.', (counter) => counter.events],
  ['counter', 'batches', '{batch}', 'Batches applied, by whichever worker.', (counter) => counter.batches],
  ['counter', 'dropped_events', '{event}', 'Events whose key had no row in the target.', (counter) => counter.droppedEvents],
  ['counter', 'late_events', '{event}', 'Events that came too late for one of the time buckets of the counter, or without a time; the count includes them.', withBuckets((counter) => counter.lateEvents)],
  ['counter', 'future_events', '{event}', 'Events whose time was more than five minutes ahead of the server.', withBuckets((counter) => counter.futureEvents)],
  ['gauge', 'failing', '', '1 while the counter cannot go on because of an error, which `pgtally status` shows.', (counter) => Number(counter.lastError !== null)],
  ['gauge', 'problems', '{problem}', 'How many things keep the counter from being exact or from going on; `pgtally status` lists them.', (counter) => counter.problems.length],
  ['gauge', 'drifting_keys', '{key}', 'Keys that the last audit of the counter has found to be wrong and that were not reconciled since; not there before the first audit.', driftingKeys],
  ['gauge', 'last_audit_timestamp', 's', 'When all keys of the counter were last audited or reconciled, in Unix time; not there before the first time.', ({ lastAudit }) => (lastAudit === null ? undefined : Date.parse(lastAudit.at) / 1000)],
]

const queues: Definition<Queue>[] = [
  ['gauge', 'pending_events', '{event}', 'Events that the consumer that is furthest behind, counters included, has not finished.', (queue) => queue.pendingEvents],
  ['gauge', 'oldest_event_age', 's', 'Age of the oldest event that one of its consumers, counters included, has not finished; 0 when there is none.', (queue) => queue.lagSeconds],
  ['gauge', 'rotation_period', 's', 'How long each of the three slots of the queue is written.', (queue) => queue.rotationPeriodSeconds],
]

const consumers: Definition<Consumer>[] = [
  ['gauge', 'pending_events', '{event}', 'Events that the consumer has not finished.', (consumer) => consumer.pendingEvents],
  ['gauge', 'lag', 's', 'Age of the oldest event that the consumer has not finished; 0 when there is none.', (consumer) => consumer.lagSeconds],
  ['gauge', 'open_batches', '{batch}', 'Batches that the consumer was given and has not finished.', (consumer) => consumer.openBatches],
  ['gauge', 'retrying_events', '{event}', 'Events that failed in the consumer and will be given again.', (consumer) => consumer.retryingEvents],
  ['gauge', 'dead_letters', '{event}', 'Events that the consumer has given up.', (consumer) => consumer.deadLetters],
  ['gauge', 'paused', '', '1 while the consumer is paused.', (consumer) => Number(consumer.pausedAt !== null)],
  ['gauge', 'failing', '', '1 while the consumer cannot go on because of an error, which `pgtally status` shows.', (consumer) => Number(consumer.lastError !== null)],
]

/** Not there for a counter without buckets. */
function withBuckets(value: (counter: Counter) => number): (counter: Counter) => number | undefined {
  return (counter) => (counter.buckets.length === 0 ? undefined : value(counter))
}

/** What the last audit of all keys has found, or a sample since then; a reconciliation leaves nothing that drifts. Undefined where there was neither. */
function driftingKeys({ lastAudit, lastSample }: Counter): number | undefined {
  const isSampleNewer = lastSample !== null && (lastAudit === null || Date.parse(lastSample.at) > Date.parse(lastAudit.at))
  const audits = [lastAudit, isSampleNewer ? lastSample : null].filter((audit) => audit !== null)
  return audits.length === 0 ? undefined : Math.max(...audits.map((audit) => (audit.corrected ? 0 : audit.driftingKeys)))
}

function of<T>(prefix: string, labels: readonly string[], definitions: readonly Definition<T>[], all: (status: Status) => readonly T[], labelsOf: (one: T) => Labels): StateMetric[] {
  return definitions.map(([kind, name, unit, help, value]) => ({
    name: `pgtally.${prefix}${name}`,
    kind,
    unit,
    help,
    labels,
    read: (status) =>
      all(status).flatMap((one) => {
        const found = value(one)
        return found === undefined ? [] : [[labelsOf(one), found] as const]
      }),
  }))
}

export const stateMetrics: readonly StateMetric[] = [
  // The word counter is left out: to Prometheus it means a type of metric.
  ...of('', ['counter'], counters, (status) => status.counters, ({ name }) => ({ counter: name })),
  ...of('queue.', ['queue'], queues, (status) => status.queues, ({ name }) => ({ queue: name })),
  {
    name: 'pgtally.queue.slot_size',
    kind: 'gauge',
    unit: 'By',
    help: 'Size of each slot of the queue, with its index.',
    labels: ['queue', 'slot'],
    read: ({ queues: all }) => all.flatMap(({ name, slotBytes }) => slotBytes.map((bytes, slot) => [{ queue: name, slot: String(slot) }, bytes] as const)),
  },
  ...of('consumer.', ['queue', 'consumer'], consumers, (status) => status.consumers, ({ queue, name }) => ({ queue, consumer: name })),
  {
    name: 'pgtally.oldest_transaction_age',
    kind: 'gauge',
    unit: 's',
    help: 'Age of the oldest open transaction that this role can see, prepared ones included; 0 when there is none.',
    labels: [],
    read: ({ oldestTransactionSeconds }) => [[{}, oldestTransactionSeconds ?? 0]],
  },
]
