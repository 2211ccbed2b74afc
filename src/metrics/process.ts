import type { Activity } from '../activity.ts'
import type { Labels, Metric } from './metric.ts'

/** Takes what happened, in the unit of the metric. */
export interface Recorder {
  /** For counters and histograms. */
  add(metric: Metric, value: number, labels: Labels): void
}

const metric = (kind: 'counter' | 'histogram', name: string, unit: string, help: string, labels: readonly string[]): Metric => ({ name: `pgtally.worker.${name}`, kind, unit, help, labels })

const rounds = metric('counter', 'rounds', '{round}', 'Looks of this process at what is due.', [])
const failedRounds = metric('counter', 'failed_rounds', '{round}', 'Looks of this process at what is due that failed, usually for want of the database.', [])
const appliedEvents = metric('counter', 'applied_events', '{event}', 'Events that this process has applied.', ['counter'])
const applyDuration = metric('histogram', 'apply_duration', 's', 'Time that a batch took this process, from before its transaction to after the commit.', ['counter'])
const applyErrors = metric('counter', 'apply_errors', '{error}', 'Attempts of this process that failed because of the counter.', ['counter'])
const emptiedSlots = metric('counter', 'emptied_slots', '{slot}', 'Slots that this process has emptied.', ['queue'])
const handleDuration = metric('histogram', 'handle_duration', 's', 'Time that a batch took a consumer of this process.', ['queue', 'consumer'])
const handleErrors = metric('counter', 'handle_errors', '{error}', 'Batches and attempts at them that failed in a consumer of this process.', ['queue', 'consumer'])

/** What this process does itself. */
export const processMetrics: readonly Metric[] = [rounds, failedRounds, appliedEvents, applyDuration, applyErrors, emptiedSlots, handleDuration, handleErrors]

export function record(recorder: Recorder, activity: Activity): void {
  switch (activity.kind) {
    case 'look':
      recorder.add(rounds, 1, {})
      if (activity.error !== undefined) recorder.add(failedRounds, 1, {})
      break
    case 'apply':
      recorder.add(appliedEvents, activity.events, { counter: activity.counter })
      recorder.add(applyDuration, activity.ms / 1000, { counter: activity.counter })
      break
    case 'apply failed':
      recorder.add(applyErrors, 1, { counter: activity.counter })
      break
    case 'empty slots':
      recorder.add(emptiedSlots, activity.slots, { queue: activity.queue })
      break
    case 'handle':
      recorder.add(handleDuration, activity.ms / 1000, { queue: activity.queue, consumer: activity.consumer })
      break
    case 'handle failed':
      recorder.add(handleErrors, 1, { queue: activity.queue, consumer: activity.consumer })
      break
  }
}
