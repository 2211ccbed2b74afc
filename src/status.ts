import type { Pool } from 'pg'

import { query } from './executor.ts'
import { requireInstalled } from './install/install.ts'

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
  /** ISO 8601, as is `lastErrorAt`. */
  lastBatchAt: string | null
  lastError: string | null
  lastErrorAt: string | null
  /** What keeps it from being exact or from going on, each with the remedy; empty when all is well. */
  problems: string[]
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

export interface Status {
  counters: CounterStatus[]
  queues: QueueStatus[]
  consumers: ConsumerStatus[]
  /** Age of the oldest transaction that this role can see, prepared ones included, in seconds; null when there is none. */
  oldestTransactionSeconds: number | null
}

const seconds = (interval: string) => `round(extract(epoch from ${interval})::numeric, 3)`

/** Where every counter and queue stands. Counts what is pending, so a long backlog takes a moment. */
export async function readStatus(pool: Pool, schema: string): Promise<Status> {
  await requireInstalled(pool, schema)
  // As JSON text, which no type parser of the caller's changes.
  const [row] = await query<{ status: string }>(
    pool,
    `select json_build_object(
      'counters', (select coalesce(json_agg(json_build_object(
        'name', name, 'queue', queue, 'source', source, 'target', target,
        'pendingEvents', pending_events, 'lagSeconds', ${seconds('lag')}, 'carriedKeys', carried_keys,
        'events', events, 'batches', batches, 'droppedEvents', dropped_events,
        'lastBatchAt', last_batch_at, 'lastError', last_error, 'lastErrorAt', last_error_at, 'problems', problems)), '[]')
        from ${schema}.counter_status()),
      'queues', (select coalesce(json_agg(json_build_object(
        'name', name, 'keyType', key_type, 'rotationPeriodSeconds', ${seconds('rotation_period')}, 'consumers', consumers,
        'pendingEvents', pending_events, 'lagSeconds', ${seconds('lag')},
        'currentSlot', current_slot, 'slotBytes', slot_bytes)), '[]')
        from ${schema}.queue_status()),
      'consumers', (select coalesce(json_agg(json_build_object(
        'queue', queue, 'name', name, 'pendingEvents', pending_events, 'lagSeconds', ${seconds('lag')}, 'openBatches', open_batches, 'lastBatchAt', last_batch_at,
        'retryingEvents', retrying_events, 'deadLetters', dead_letters, 'pausedAt', paused_at, 'lastError', last_error, 'lastErrorAt', last_error_at)), '[]')
        from ${schema}.consumer_status()),
      'oldestTransactionSeconds', ${seconds(`clock_timestamp() - ${schema}.oldest_transaction()`)}
    )::text as status`,
  )
  return JSON.parse(row?.status ?? '') as Status
}
