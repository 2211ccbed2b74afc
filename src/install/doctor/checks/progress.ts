import { defineCheck, describeAge, enumerate, secondsSince } from '../check.ts'
import type { Found } from '../finding.ts'

interface Row {
  queue: string
  consumer: string
  counter: boolean
  /** Age of the oldest pending event; null for none. */
  pendingSeconds: number | null
  batchSeconds: number | null
  openBatches: number
  abandoned: boolean
  pausedSeconds: number | null
  lastError: string | null
  errorSeconds: number | null
}

type Code = 'WORKER_NOT_RUNNING' | 'COUNTER_FAILING' | 'COUNTER_STUCK' | 'COUNTER_LAGS' | 'CONSUMER_FAILING' | 'CONSUMER_LAGS' | 'CONSUMER_PAUSED'

/** Counters and consumers that fail, stand still or fall behind. Whether a worker runs shows by what becomes of old events; nobody has to report. */
export const progress = defineCheck<Row>()({
  name: 'progress of counters and consumers',
  codes: {
    WORKER_NOT_RUNNING: 'error',
    COUNTER_FAILING: 'error',
    COUNTER_STUCK: 'error',
    COUNTER_LAGS: 'warning',
    CONSUMER_FAILING: 'error',
    CONSUMER_LAGS: 'warning',
    CONSUMER_PAUSED: 'warning',
  },
  needsSchema: true,
  query: ({ schema }) => `
    select queue, consumer, counter, ${secondsSince('pending_since')} as "pendingSeconds", ${secondsSince('last_batch_at')} as "batchSeconds",
      open_batches as "openBatches", open_batches > 0 and coalesce(claimed_until < clock_timestamp(), true) as abandoned, ${secondsSince('paused_at')} as "pausedSeconds",
      last_error as "lastError", ${secondsSince('last_error_at')} as "errorSeconds"
    from ${schema}.consumer_backlog() where not foreign_cluster`,
  find: (rows, { database, limits, command }) => {
    const counters = rows.filter(({ counter }) => counter)
    const failing = counters.filter(({ lastError }) => lastError !== null)
    const late = counters.filter(({ lastError, pendingSeconds }) => lastError === null && (pendingSeconds ?? 0) > limits.counterLagSeconds)
    const stuck = late.filter(({ batchSeconds }) => batchSeconds === null || batchSeconds > limits.counterLagSeconds)
    // A failing counter's error is young while a worker tries again and again.
    const workerSeen =
      counters.some(({ batchSeconds }) => batchSeconds !== null && batchSeconds <= limits.counterLagSeconds) ||
      failing.some(({ errorSeconds }) => errorSeconds !== null && errorSeconds <= limits.counterLagSeconds)
    const found: Found<Code>[] = []

    if (stuck.length > 0 && !workerSeen) {
      const oldest = Math.max(...stuck.map(({ pendingSeconds }) => pendingSeconds ?? 0))
      found.push({
        code: 'WORKER_NOT_RUNNING',
        subject: { kind: 'database', name: database },
        problem: `No worker seems to run: the oldest event has waited for ${describeAge(oldest)}, and nothing was applied meanwhile. Stored counts stand still (${enumerate(stuck.map(({ consumer }) => consumer))}). Likes are kept, none is lost.`,
        remedy: [{ advice: 'Start it again where it should be running, and look at its log:' }, { command: command('worker') }, { advice: 'Or apply what is pending now, once:' }, { command: command('drain') }],
      })
    } else {
      for (const { consumer, pendingSeconds } of stuck) {
        found.push({
          code: 'COUNTER_STUCK',
          subject: { kind: 'counter', name: consumer },
          problem: `Its oldest event has waited for ${describeAge(pendingSeconds ?? 0)} and nothing of it was applied meanwhile, though other counters go on. A worker may hang in a batch of it.`,
          remedy: [{ advice: 'See what keeps it; if this hangs, too, restart the workers:' }, { command: command('drain', '--timeout', '30s') }],
        })
      }
    }
    for (const { consumer, pendingSeconds } of late.filter((one) => !stuck.includes(one))) {
      found.push({
        code: 'COUNTER_LAGS',
        subject: { kind: 'counter', name: consumer },
        problem: `It is being applied, but its oldest event has waited for ${describeAge(pendingSeconds ?? 0)}: more comes in than is applied, or a long backlog is being worked off.`,
        remedy: [{ advice: 'If that does not shrink, look at the findings about transactions and about its target; several workers help where several counters lag:' }, { command: command('worker') }],
      })
    }
    for (const { consumer, lastError, errorSeconds } of failing) {
      found.push({
        code: 'COUNTER_FAILING',
        subject: { kind: 'counter', name: consumer },
        problem: `It could not be applied ${describeAge(errorSeconds ?? 0)} ago: ${sentence(lastError)} Its events wait, none is lost; other counters go on.`,
        remedy: [{ advice: 'Mend what the error says; workers try again by themselves, or this does:' }, { command: command('drain') }],
      })
    }

    for (const { queue, consumer, pendingSeconds, batchSeconds, openBatches, abandoned, pausedSeconds, lastError, errorSeconds } of rows.filter(({ counter }) => !counter)) {
      const subject = { kind: 'consumer', name: `${queue} ${consumer}` } as const
      const waited = pendingSeconds ?? 0
      const give = [{ advice: 'If it is not needed any more, with its dead letters:' }, { command: command('consumer', 'unregister', queue, consumer) }, { advice: 'Or if what is pending is not:' }, { command: command('consumer', 'skip', queue, consumer) }]
      if (pausedSeconds !== null) {
        if (pendingSeconds === null) continue
        const problem = `It has been paused for ${describeAge(pausedSeconds)}, and its oldest event has waited for ${describeAge(waited)}. Until it goes on, slots of the queue cannot be emptied and grow.`
        found.push({ code: 'CONSUMER_PAUSED', subject, problem, remedy: [{ command: command('consumer', 'resume', queue, consumer) }, ...give] })
      } else if (lastError !== null) {
        const problem = `It failed ${describeAge(errorSeconds ?? 0)} ago: ${sentence(lastError)} Its events wait, none is lost, and slots of the queue are kept for them.`
        found.push({ code: 'CONSUMER_FAILING', subject, problem, remedy: [{ advice: 'Mend what the error says, and see that its process runs; it tries again by itself.' }, ...give] })
      } else if (waited > limits.consumerLagSeconds) {
        const last = batchSeconds === null ? 'It has never finished a batch.' : `It last finished a batch ${describeAge(batchSeconds)} ago.`
        const open = openBatches === 0 ? '' : ` ${openBatches} of its batches ${openBatches === 1 ? 'is' : 'are'} open${abandoned ? ` and nobody is at work on ${openBatches === 1 ? 'it' : 'them'}` : ''}.`
        const problem = `Its oldest event has waited for ${describeAge(waited)}. ${last}${open} Until it goes on, slots of the queue cannot be emptied and grow.`
        found.push({ code: 'CONSUMER_LAGS', subject, problem, remedy: [{ advice: 'Start the process that runs it, and look at its log.' }, ...give] })
      }
    }
    return found
  },
})

const sentence = (text: string | null) => (text === null ? '' : /[.!?]$/.test(text) ? text : `${text}.`)
