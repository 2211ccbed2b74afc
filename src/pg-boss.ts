import type { JobInsert, PgBoss } from 'pg-boss'
import { z } from 'zod'

import type { Measurement } from './counters/measure.ts'
import { PgtallyError, describeError } from './errors.ts'
import type { QueueEvent, TransactionalBatch } from './queue/batch.ts'
import type { ConsumerDefinition } from './queue/definition.ts'
import type { Tally } from './tally.ts'

type Definition<S extends z.ZodType> = ConsumerDefinition<S, 'transactional'>
type Settings<S extends z.ZodType> = Omit<Definition<S>, 'name' | 'mode' | 'handler' | 'each'>

/** A job as it is sent for an event: its data, and options of pg-boss other than those that leave jobs out. */
export type EventJob = Omit<JobInsert, 'id' | 'singletonSeconds'>

/** Where jobs go. */
export interface JobTarget {
  /** pg-boss, started, in the same database. Its schema may be any. */
  boss: PgBoss
  /** The queue of pg-boss that gets the jobs; it must be there (`boss.createQueue()`). */
  jobQueue: string
  /** The consumer's name. Default: `pg-boss:` and the job queue's name. */
  name?: string | undefined
}

export interface JobsOptions<S extends z.ZodType = z.ZodUnknown> extends Settings<S>, JobTarget {
  /** The job for an event; undefined for none. Default: the event itself is the job's data. */
  toJob?: ((event: QueueEvent<z.output<S>>) => EventJob | undefined) | undefined
}

/**
 * A consumer that sends a pg-boss job for each event, in the transaction that finishes the batch: each event becomes one job, whatever crashes. What the job does
 * is pg-boss's to repeat until it succeeds.
 *
 * While it cannot send, the events wait in the queue, and `status()` says why: pg-boss uses another database, the job queue is not there, or its policy (`short`, `stately`,
 * `exclusive`) leaves out jobs.
 *
 * @example
 * ```ts
 * await boss.createQueue('notify-author')
 * await using sender = tally.consumer(jobs({ queue: 'post_likes', boss, jobQueue: 'notify-author', toJob: ({ key, delta }) => (delta > 0 ? { data: { post: key } } : undefined) }))
 * ```
 */
export function jobs<S extends z.ZodType = z.ZodUnknown>({ boss, jobQueue, name = `pg-boss:${jobQueue}`, toJob = eventAsJob, ...settings }: JobsOptions<S>): Definition<S> {
  return {
    ...settings,
    name,
    handler: async (batch) => {
      await requireJobQueue(boss, jobQueue, batch.client)
      for await (const page of batch.pages()) {
        const sent = page.flatMap((event) => toJob(event) ?? [])
        if (sent.length > 0) await send(boss, jobQueue, sent, batch.client)
      }
    },
  }
}

export interface MilestoneJobsOptions extends JobTarget {
  /** The counter whose milestones are sent. */
  counter: string
}

/** The data of a milestone's job. */
export interface MilestoneJob {
  counter: string
  /** The counter's key, as text. */
  key: string
  /** What was reached. */
  threshold: number
  /** The count at that time. */
  value: number
}

/**
 * `jobs()` for a counter's milestones, the events of its queue `<counter>.milestones`: one job for each, with `MilestoneJob` as data.
 *
 * @example
 * ```ts
 * await using sender = tally.consumer(milestoneJobs({ counter: 'post_likes', boss, jobQueue: 'congratulate' }))
 * await boss.work<MilestoneJob>('congratulate', async (batch) => {
 *   for (const { data } of batch) mail(data.key, `${data.threshold} likes!`)
 * })
 * ```
 */
export function milestoneJobs({ counter, ...target }: MilestoneJobsOptions) {
  return jobs({
    ...target,
    queue: `${counter}.milestones`,
    schema: z.object({ threshold: z.number(), value: z.number() }),
    toJob: ({ key, data }) => ({ data: { counter, key, ...data } satisfies MilestoneJob }),
  })
}

export interface MaintenanceOptions {
  /** When every counter is audited: a cron expression. Default `0 3 * * *`, every night at three. */
  audit?: string | undefined
  /** When a reconciliation is tried, which corrects nothing: a cron expression. Default `0 5 * * 0`, on Sundays at five. */
  reconcileDryRun?: string | undefined
  /** Of both. Default UTC. */
  timeZone?: string | undefined
  /** Told of each run that was able to measure, with or without drift. */
  onReport?: ((report: MaintenanceReport) => void) | undefined
}

export interface MaintenanceReport {
  task: 'audit' | 'reconcile-dry-run'
  measurements: Measurement[]
}

/**
 * Lets pg-boss be the calendar: audits every counter that has a source each night, and says once a week what `reconcile()` would correct. A job with drift fails, with a message that
 * says where; it is not tried again before the next time. To be called whenever the application starts, with pg-boss started: the schedules become what is given here, and this process
 * works on the jobs. pg-boss may be in another database. Nothing else of pgtally needs it.
 *
 * The job queues are named by pgtally's schema: `pgtally-audit`, `pgtally-reconcile-dry-run`. To end it: `boss.unschedule()` both.
 *
 * @throws errors of pg-boss unwrapped, such as that of a cron expression that will not do
 *
 * @example
 * ```ts
 * await scheduleMaintenance(boss, tally, { timeZone: 'Europe/Berlin', onReport: (report) => console.log(report) })
 * ```
 */
export async function scheduleMaintenance(boss: PgBoss, tally: Tally, options: MaintenanceOptions = {}): Promise<void> {
  const { audit = '0 3 * * *', reconcileDryRun = '0 5 * * 0', timeZone = 'UTC', onReport } = options
  const schedule = async (task: MaintenanceReport['task'], cron: string) => {
    const queue = `${tally.schema}-${task}`
    // At most one at a time, for as long as it takes; that of a process that has died fails soon.
    await boss.createQueue(queue, { policy: 'exclusive', retryLimit: 0, expireInSeconds: 24 * 3600, heartbeatSeconds: 60 })
    await boss.schedule(queue, cron, null, { tz: timeZone })
    await boss.work(queue, async ([job]) => {
      const { measurements, failures } = await measureAll(tally, job?.signal)
      onReport?.({ task, measurements })
      const problems = [...failures, ...measurements.filter(({ driftingKeys }) => driftingKeys > 0).map(task === 'audit' ? describeDrift : describeCorrections)]
      if (problems.length > 0) throw new Error(problems.join(' '))
      return { counters: measurements.map(({ counter, checkedKeys }) => ({ counter, checkedKeys })) }
    })
  }
  await schedule('audit', audit)
  await schedule('reconcile-dry-run', reconcileDryRun)
}

const namedKeys = 10

/** One that cannot be measured keeps no other from it. */
async function measureAll(tally: Tally, signal: AbortSignal | undefined): Promise<{ measurements: Measurement[]; failures: string[] }> {
  const measurements: Measurement[] = []
  const failures: string[] = []
  const { counters } = await tally.status()
  for (const { name } of counters.filter(({ source }) => source !== null)) {
    try {
      measurements.push(await tally.counter(name).audit({ signal }))
    } catch (error) {
      signal?.throwIfAborted()
      failures.push(`Counter "${name}" cannot be audited: ${describeError(error)}.`)
    }
  }
  return { measurements, failures }
}

function describeDrift({ counter, checkedKeys, driftingKeys }: Measurement): string {
  return `Counter "${counter}": ${driftingKeys} of ${checkedKeys} keys drift. See: pgtally reconcile ${counter} --dry-run.`
}

function describeCorrections({ counter, driftingKeys, drifts }: Measurement): string {
  const named = drifts.slice(0, namedKeys).map(({ key, drift }) => `${key} by ${drift > 0 ? '+' : ''}${drift}`)
  const more = driftingKeys > named.length ? ` and ${driftingKeys - named.length} more` : ''
  return `Counter "${counter}": pgtally reconcile ${counter} would correct ${named.join(', ')}${more}.`
}

function eventAsJob({ id, time, key, delta, data }: QueueEvent): EventJob {
  return { data: { id, time, key, delta, data } }
}

// The name alone says little: two clusters may have a database of the same name.
const databaseQuery = `select current_database() as name, (select oid::text from pg_catalog.pg_database where datname = current_database()) || '@' ||
  (select system_identifier::text from pg_catalog.pg_control_system()) as identity`

async function requireJobQueue(boss: PgBoss, jobQueue: string, client: TransactionalBatch['client']): Promise<void> {
  const { rows: [theirs] } = (await boss.getDb().executeSql(databaseQuery)) as { rows: { name: string; identity: string }[] }
  const { rows: [ours] } = await client.query<{ name: string; identity: string }>(databaseQuery)
  if (ours?.identity !== theirs?.identity) {
    throw new PgtallyError('INVALID_ARGUMENT', `pg-boss uses the database "${theirs?.name}" of another connection string, pgtally "${ours?.name}": jobs can only be sent in the batch's transaction if both use the same database of one server`)
  }
  if ((await boss.getQueue(jobQueue)) === null) throw new PgtallyError('NOT_FOUND', `pg-boss has no queue "${jobQueue}". Call boss.createQueue('${jobQueue}') first`)
}

async function send(boss: PgBoss, jobQueue: string, sent: EventJob[], client: TransactionalBatch['client']): Promise<void> {
  const db = { executeSql: (text: string, values?: unknown[]) => client.query(text, values) }
  const ids = (await boss.insert(jobQueue, sent, { db, returnId: true })) ?? []
  if (ids.length !== sent.length) {
    throw new PgtallyError('INVALID_ARGUMENT', `pg-boss took ${ids.length} of ${sent.length} jobs for its queue "${jobQueue}": its policy leaves out jobs. Use a queue of the policy standard, singleton or key_strict_fifo`)
  }
}
