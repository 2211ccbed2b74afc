import type { Pool } from 'pg'

import { z } from 'zod'

import { keyTypes } from '../counters/definition.ts'
import type { Key, KeyType } from '../counters/definition.ts'
import { PgtallyError, translateDefinitionError } from '../errors.ts'
import { query } from '../executor.ts'
import type { Executor } from '../executor.ts'
import { requireInstalled } from '../install/install.ts'
import { inLockingTransaction, inTransaction } from '../transaction.ts'

export interface QueueOptions {
  /** Default: `bigint`. */
  keyType?: KeyType | undefined
  /** How long writers stay in one of the three slots, in ms. Events take up space for two to three times that. Default: 300 000, or `retainMs` if that is more. */
  rotationPeriodMs?: number | undefined
  /** How long events are kept at least, in ms, for consumers that want to read again (`seek()`). At most `rotationPeriodMs`. Default: 0. */
  retainMs?: number | undefined
}

export interface NewEvent {
  key: Key
  /** A whole number. Default 1. */
  delta?: number | bigint | undefined
  /** Anything that JSON can hold. */
  data?: unknown
}

export interface DeadLetter {
  /** Names it for `replay()` and `purge()`. */
  number: string
  /** The event's `id`. */
  eventId: string
  /** When the event was written, ISO 8601. */
  time: string
  key: string
  /** As text, of any size. */
  delta: string
  data: unknown
  /** How often it was handled in vain. */
  attempts: number
  /** Why it was not handled the last time. */
  reason: string
  /** When that was, ISO 8601. */
  failedAt: string
}

const optionsSchema = z.strictObject({ keyType: z.enum(keyTypes).default('bigint'), rotationPeriodMs: z.int().min(1000).optional(), retainMs: z.int().min(0).default(0) })

/** @throws PgtallyError INVALID_ARGUMENT, INVALID_DEFINITION, DEFINITION_CONFLICT, NOT_INSTALLED */
export async function createQueue(pool: Pool, schema: string, name: string, options: QueueOptions): Promise<boolean> {
  const parsed = optionsSchema.safeParse(options)
  if (!parsed.success) throw new PgtallyError('INVALID_ARGUMENT', `Queue "${name}": ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
  const { keyType, rotationPeriodMs, retainMs } = parsed.data
  await requireInstalled(pool, schema)
  const text = `select ${schema}.create_queue($1::text, $2::text, $3::int8 * interval '1 millisecond', $4::int8 * interval '1 millisecond')::text as created`
  const [row] = await query<{ created: string }>(pool, text, [name, keyType, rotationPeriodMs, retainMs])
  return row?.created === 'true'
}

/** @throws PgtallyError NOT_FOUND, IN_USE, LOCK_TIMEOUT, NOT_INSTALLED */
export async function dropQueue(pool: Pool, schema: string, name: string): Promise<void> {
  try {
    await requireInstalled(pool, schema)
    await inLockingTransaction(pool, (client) => client.query(`select ${schema}.drop_queue($1::text)`, [name]))
  } catch (error) {
    throw translateDefinitionError(error)
  }
}

/** A queue by name: a handle that costs nothing and holds nothing. Consumers are named as in `tally.consumer()`. */
export class Queue {
  readonly name: string
  readonly #schema: string
  readonly #pool: Pool

  /** @internal Use `tally.queue()`. */
  constructor(name: string, schema: string, pool: Pool) {
    this.name = name
    this.#schema = schema
    this.#pool = pool
  }

  /**
   * Appends an event, as part of the caller's transaction: each consumer is given it once that has committed, and not at all when it rolls back. Given a
   * pool, it commits at once.
   *
   * @throws PgtallyError INVALID_EVENT (the queue has a source, whose rows are its events; the key is too long), NOT_FOUND; errors of the server unwrapped
   *
   * @example
   * ```ts
   * await tally.queue('mails').insert(client, { key: 'user 7', data: { template: 'welcome' } })
   * ```
   */
  async insert(executor: Executor, { key, delta = 1, data }: NewEvent): Promise<void> {
    await query(executor, `select ${this.#schema}.insert_event($1::text, $2::text, $3::int8, $4::jsonb)`, [this.name, key, delta, data === undefined ? null : JSON.stringify(data)])
  }

  /**
   * Makes a consumer that is given every event from now on. A consumer's first start does so too; this is for those who cannot wait for that.
   *
   * @returns false when it is there already
   * @throws PgtallyError NOT_FOUND, INVALID_DEFINITION (the name)
   */
  async register(consumer: string): Promise<boolean> {
    return (await this.#call('register_consumer', consumer)) === 'true'
  }

  /**
   * Removes a consumer with its position, its failed events and its dead letters.
   *
   * @throws PgtallyError NOT_FOUND, IN_USE (it is a counter), as do the following
   */
  async unregister(consumer: string): Promise<void> {
    await this.#call('unregister_consumer', consumer)
  }

  /** Gives it no batch any more; those at work are finished. Events wait. Returns false when it was paused already. */
  async pause(consumer: string): Promise<boolean> {
    return (await this.#call('pause_consumer', consumer)) === 'true'
  }

  /** Returns false when it was not paused. */
  async resume(consumer: string): Promise<boolean> {
    return (await this.#call('resume_consumer', consumer)) === 'true'
  }

  /** Sets it back: it is given again what was emitted since then, as far as that is still there (`retainMs`). Returns how many events are before it. */
  async seek(consumer: string, since: Date): Promise<number> {
    return Number(await this.#call('seek', consumer, ['timestamptz', since.toISOString()]))
  }

  /** Passes over everything that is pending. Failed events stay. Returns how many events were passed over. */
  async skip(consumer: string): Promise<number> {
    return Number(await this.#call('skip', consumer))
  }

  /** The oldest events that the consumer was not able to handle. */
  async deadLetters(consumer: string, { limit = 100 }: { limit?: number } = {}): Promise<DeadLetter[]> {
    await requireInstalled(this.#pool, this.#schema)
    const [row] = await query<{ letters: string }>(
      this.#pool,
      `select coalesce(json_agg(json_build_object('number', failed_event_id::text, 'eventId', ev_id, 'time', ev_time, 'key', ev_key, 'delta', ev_delta::text,
         'data', ev_data, 'attempts', attempts, 'reason', reason, 'failedAt', failed_at)), '[]')::text as letters
       from (select * from ${this.#schema}.dead_letters($1::text, $2::text) limit $3::int8) d`,
      [this.name, consumer, limit],
    )
    return JSON.parse(row?.letters ?? '') as DeadLetter[]
  }

  /** Gives dead letters to the consumer again, all or those with these numbers, as if they had never failed. Returns how many. */
  async replay(consumer: string, numbers?: readonly string[]): Promise<number> {
    return Number(await this.#call('replay_dead_letters', consumer, ['int8[]', numbers]))
  }

  /** Removes dead letters for good, all or those with these numbers. Returns how many. */
  async purge(consumer: string, numbers?: readonly string[]): Promise<number> {
    return Number(await this.#call('purge_dead_letters', consumer, ['int8[]', numbers]))
  }

  async #call(name: string, consumer: string, ...more: readonly (readonly [type: string, value: unknown])[]): Promise<string | undefined> {
    await requireInstalled(this.#pool, this.#schema)
    const parameters = more.map(([type], index) => `, $${index + 3}::${type}`).join('')
    const text = `select ${this.#schema}.${name}($1::text, $2::text${parameters})::text as result`
    // READ COMMITTED, which positions need, whatever the database's default is.
    const [row] = await inTransaction(this.#pool, (client) => query<{ result: string }>(client, text, [this.name, consumer, ...more.map(([, value]) => value)]))
    return row?.result
  }
}
