import { query } from './executor.ts'
import type { PgExecutor } from './executor.ts'

/** What an audit or reconciliation has found. */
export interface AuditStatus {
  /** When it ended, in ISO 8601. */
  at: string
  checkedKeys: number
  driftingKeys: number
  /** It was a reconciliation: those keys drift no more. */
  corrected: boolean
}

export interface BucketStatus {
  /** As PostgreSQL writes intervals: `01:00:00`, `1 day`. */
  width: string
  /** null: for ever. */
  retain: string | null
  /** Where days begin; null for narrower buckets. */
  timeZone: string | null
  /** The start of the first bucket that is kept, in ISO 8601; null where all are. */
  since: string | null
  /** The view that has them: `start`, `key`, `count`. */
  view: string
}

export interface CounterStatus {
  name: string
  queue: string
  /** The table whose rows are counted; null where events come from `add()`. */
  source: string | null
  target: string
  /** Events that have committed and are not applied yet. */
  pendingEvents: number
  /** Age of the oldest pending or carried event, in seconds; 0 when there is none. */
  lagSeconds: number
  /** Keys of which something waits for a locked row. */
  carriedKeys: number
  /** Applied so far. */
  events: number
  batches: number
  /** Events whose key had no row in the target. */
  droppedEvents: number
  /** Events that came too late for a time bucket that is no longer kept, such as the unlike of an old like, or that have no time. The count includes them. */
  lateEvents: number
  /** Events that were more than five minutes ahead of the server's clock: in a bucket of the future, and in scores when their time has come. */
  futureEvents: number
  /** Its time buckets, the narrowest first. */
  buckets: BucketStatus[]
  /** ISO 8601, as is `lastErrorAt`. */
  lastBatchAt: string | null
  lastError: string | null
  lastErrorAt: string | null
  /** What keeps it from being exact or from going on, each with the remedy; empty when all is well. */
  problems: string[]
  /** The last audit or reconciliation of all keys; null where there was none, or none by a role that may keep what it finds. */
  lastAudit: AuditStatus | null
  /** The same of a sample. */
  lastSample: AuditStatus | null
}

export interface QueueStatus {
  name: string
  keyType: string
  rotationPeriodSeconds: number
  consumers: string[]
  /** Of the consumer that is furthest behind. */
  pendingEvents: number
  lagSeconds: number
  /** The slot that is being written. */
  currentSlot: number
  /** The size of each slot with its index, in bytes. */
  slotBytes: number[]
  /** For each slot, the consumers that have not finished what is in it. Until they have, it is not emptied. */
  slotWaitsFor: string[][]
}

/** A consumer that is not a counter. */
export interface ConsumerStatus {
  queue: string
  name: string
  /** Events that it has not finished. */
  pendingEvents: number
  /** Age of the oldest of them, in seconds; 0 when there is none. */
  lagSeconds: number
  /** Batches that were given and are not finished. */
  openBatches: number
  /** ISO 8601, as are the other times. */
  lastBatchAt: string | null
  /** Events that failed and will be given again. */
  retryingEvents: number
  deadLetters: number
  pausedAt: string | null
  lastError: string | null
  lastErrorAt: string | null
}

/** An event that a consumer was not able to handle, without its data. */
export interface LatestDeadLetter {
  /** For `queue.replay()` and `queue.purge()`. */
  number: string
  queue: string
  consumer: string
  key: string
  attempts: number
  /** ISO 8601 */
  failedAt: string
  reason: string
}

export interface Status {
  /** When this was read, by the server's clock, in ISO 8601. */
  readAt: string
  database: string
  serverVersion: string
  counters: CounterStatus[]
  queues: QueueStatus[]
  consumers: ConsumerStatus[]
  /** The latest twenty of all consumers, those first. */
  latestDeadLetters: LatestDeadLetter[]
  /** Age of the oldest transaction that this role can see, prepared ones included, in seconds; null when there is none. */
  oldestTransactionSeconds: number | null
}

const seconds = (interval: string) => `round(extract(epoch from ${interval})::numeric, 3)`

const lastAudit = (complete: boolean) => `(select json_build_object('at', a.audited_at, 'checkedKeys', a.checked_keys, 'driftingKeys', a.drifting_keys,
        'corrected', a.corrected) from audits a where a.counter = name and a.complete = ${complete})`

const buckets = (schema: string) => `(select coalesce(json_agg(json_build_object('width', b.width::text, 'retain', b.retain::text, 'timeZone', b.time_zone,
        'since', case when isfinite(b.since) then b.since end, 'view', b.view)), '[]') from ${schema}.bucket_status() b where b.counter = name)`

/** Where every counter and queue stands. Counts what is pending, so a long backlog takes a moment. */
export async function readStatus(executor: PgExecutor, schema: string): Promise<Status> {
  // As JSON text, which no type parser of the caller's changes.
  const [row] = await query<{ status: string }>(
    executor,
    `with audits as materialized (select * from ${schema}.audit_status())
    select json_build_object(
      'readAt', clock_timestamp(), 'database', current_database(), 'serverVersion', current_setting('server_version'),
      'counters', (select coalesce(json_agg(json_build_object(
        'name', name, 'queue', queue, 'source', source, 'target', target,
        'pendingEvents', pending_events, 'lagSeconds', ${seconds('lag')}, 'carriedKeys', carried_keys,
        'events', events, 'batches', batches, 'droppedEvents', dropped_events,
        'lateEvents', late_events, 'futureEvents', future_events, 'buckets', ${buckets(schema)},
        'lastBatchAt', last_batch_at, 'lastError', last_error, 'lastErrorAt', last_error_at, 'problems', problems,
        'lastAudit', ${lastAudit(true)}, 'lastSample', ${lastAudit(false)})), '[]')
        from ${schema}.counter_status()),
      'queues', (select coalesce(json_agg(json_build_object(
        'name', name, 'keyType', key_type, 'rotationPeriodSeconds', ${seconds('rotation_period')}, 'consumers', consumers,
        'pendingEvents', pending_events, 'lagSeconds', ${seconds('lag')},
        'currentSlot', current_slot, 'slotBytes', slot_bytes, 'slotWaitsFor', slot_waits_for)), '[]')
        from ${schema}.queue_status()),
      'consumers', (select coalesce(json_agg(json_build_object(
        'queue', queue, 'name', name, 'pendingEvents', pending_events, 'lagSeconds', ${seconds('lag')}, 'openBatches', open_batches, 'lastBatchAt', last_batch_at,
        'retryingEvents', retrying_events, 'deadLetters', dead_letters, 'pausedAt', paused_at, 'lastError', last_error, 'lastErrorAt', last_error_at)), '[]')
        from ${schema}.consumer_status()),
      'latestDeadLetters', (select coalesce(json_agg(json_build_object(
        'number', number::text, 'queue', queue, 'consumer', consumer, 'key', key, 'attempts', attempts, 'failedAt', failed_at, 'reason', reason)), '[]')
        from ${schema}.latest_dead_letters()),
      'oldestTransactionSeconds', ${seconds(`clock_timestamp() - ${schema}.oldest_transaction()`)}
    )::text as status`,
  )
  return JSON.parse(row?.status ?? '') as Status
}
