import { setTimeout as sleep } from 'node:timers/promises'

import type { Pool } from 'pg'

import { describeError } from '../errors.ts'
import { requireInstalled } from '../install/install.ts'
import { Applier } from './applier.ts'
import { dueCounters } from './due-counters.ts'
import { workerDefaults } from './worker.ts'

export interface DrainOptions {
  /** How long to try for rows that other transactions have locked, in ms. Default 30 000. */
  timeoutMs?: number
}

export interface DrainResult {
  /** Events applied. */
  events: number
  /** Counters that could not apply all, with the reason. */
  failed: { counter: string; error: string }[]
}

/**
 * Applies everything that had committed when this was called. Workers may run beside it.
 *
 * @throws PgtallyError NOT_INSTALLED, SCHEMA_TOO_NEW, SCHEMA_TOO_OLD, READ_ONLY (a standby)
 */
export async function drain(pool: Pool, schema: string, { timeoutMs = 30_000 }: DrainOptions = {}): Promise<DrainResult> {
  await requireInstalled(pool, schema)
  const deadline = performance.now() + timeoutMs
  const result: DrainResult = { events: 0, failed: [] }
  const { due } = await dueCounters(pool, schema)
  for (const { name } of due) {
    try {
      const applier = new Applier(pool, schema, name)
      result.events += await drainEvents(applier)
      await drainCarried(pool, schema, name, applier, deadline)
    } catch (error) {
      result.failed.push({ counter: name, error: describeError(error) })
    }
  }
  return result
}

async function drainEvents(applier: Applier): Promise<number> {
  let events = 0
  for (;;) {
    const batch = await applier.applyBatch(workerDefaults.maxBatchEvents)
    events += batch.events ?? 0
    if (batch.busy) await sleep(20)
    else if (!batch.cut) return events
  }
}

async function drainCarried(pool: Pool, schema: string, name: string, applier: Applier, deadline: number): Promise<void> {
  for (;;) {
    const { due } = await dueCounters(pool, schema)
    if (!due.some((counter) => counter.name === name && counter.carried)) return
    if (performance.now() > deadline) throw new Error('Rows of the target are locked by other transactions. Try again when those have ended')
    await applier.applyCarried()
    await applier.waitForCarried()
    await sleep(20)
  }
}
