import type { Pool } from 'pg'
import type { z } from 'zod'

import { Counter } from './counters/counter.ts'
import type { TransactionToken } from './counters/counter.ts'
import type { CounterDefinition, DefinedCounters, Key } from './counters/definition.ts'
import { createCounter, dropCounter } from './counters/manage.ts'
import type { CreateCounterOptions } from './counters/manage.ts'
import { PgtallyError } from './errors.ts'
import { query } from './executor.ts'
import type { Executor } from './executor.ts'
import { grant, revoke } from './install/access.ts'
import type { Access, Granted } from './install/access.ts'
import { examine } from './install/doctor/doctor.ts'
import type { Diagnosis } from './install/doctor/doctor.ts'
import { install, requireInstalled, uninstall } from './install/install.ts'
import type { InstallResult } from './install/install.ts'
import { Consumer } from './queue/consumer.ts'
import { parseDefinition } from './queue/definition.ts'
import type { ConsumerDefinition, ConsumerMode } from './queue/definition.ts'
import { defineForward } from './queue/forward.ts'
import type { ForwardDefinition } from './queue/forward.ts'
import { Queue, createQueue, dropQueue } from './queue/queue.ts'
import type { QueueOptions } from './queue/queue.ts'
import { rebase } from './queue/rebase.ts'
import type { RebasedQueue } from './queue/rebase.ts'
import { checkSchemaName, defaultSchema } from './schema.ts'
import { readStatus } from './status.ts'
import type { Status } from './status.ts'
import { drain } from './worker/drain.ts'
import type { DrainOptions, DrainResult } from './worker/drain.ts'
import type { ServiceOptions } from './service.ts'
import { Worker } from './worker/worker.ts'
import type { WorkerOptions } from './worker/worker.ts'
import { BufferedCounter } from './writer/buffered.ts'
import type { BufferedOptions } from './writer/buffered.ts'
import { Writer } from './writer/writer.ts'
import type { WriterOptions } from './writer/writer.ts'

export interface TallyOptions<Keys extends Record<string, Key>> {
  /** Connections to the database that holds the tables. Never closed by pgtally. */
  pool: Pool
  /** The counters of this application, from `defineCounters()`. `install()` creates them. */
  counters?: DefinedCounters<Keys>
  /** The schema that pgtally is installed in. Default `pgtally`. */
  schema?: string
}

/**
 * pgtally in one database; made by `createTally()`. Where its pool leads to a hot standby, counts, status and audits can be read; what writes throws READ_ONLY, and a worker waits
 * until the server is promoted or its address leads to a primary.
 */
export class Tally<Keys extends Record<string, Key> = Record<never, never>> {
  readonly schema: string
  /** The counters that were given to `createTally()`, by name. */
  readonly counters: { readonly [N in keyof Keys]: Counter<Keys[N]> }
  readonly #pool: Pool
  readonly #definitions: readonly (readonly [name: string, definition: CounterDefinition])[]

  /** @internal Use `createTally()`. */
  constructor({ pool, counters, schema = defaultSchema }: TallyOptions<Keys>) {
    // A caller without types may pass a client, in whose transaction the worker would then interfere.
    if (typeof pool?.connect !== 'function' || typeof pool.totalCount !== 'number') {
      throw new PgtallyError('INVALID_ARGUMENT', 'createTally() needs a pool: createTally({ pool: new pg.Pool({ connectionString }) }).')
    }
    this.schema = checkSchemaName(schema)
    this.#pool = pool
    this.#definitions = Object.entries(counters?.definitions ?? {})
    this.counters = Object.fromEntries(this.#definitions.map(([name]) => [name, this.counter(name)])) as unknown as Tally<Keys>['counters']
  }

  /** @internal */
  get pool(): Pool {
    return this.#pool
  }

  /**
   * Installs pgtally's schema or brings it up to date, and creates the counters that were given to `createTally()`. To be
   * called whenever the application starts: what is there already is left alone, and any number may call it at once. A new counter's
   * backfill is part of it, which takes a while on a large table; the application's writes go on meanwhile.
   *
   * @throws PgtallyError SERVER_TOO_OLD, SCHEMA_TOO_NEW, PERMISSION_DENIED; and as `createCounter()`
   */
  async install(options: CreateCounterOptions = {}): Promise<InstallResult> {
    const result = await install(this.#pool, this.schema)
    for (const [name, definition] of this.#definitions) await this.createCounter(name, definition, options)
    return result
  }

  /** Removes pgtally's schema and triggers. The user's tables and the counts in them stay. Returns false when it was not installed. */
  async uninstall(): Promise<boolean> {
    return uninstall(this.#pool, this.schema)
  }

  /**
   * Gives existing roles the rights on pgtally that they need, on what is there and on counters and queues that are created later. To be called by the role that has installed it. Creates
   * no role, and changes nothing on the user's own tables: it returns the statements that are still to be run there. Again it changes nothing.
   *
   * @throws PgtallyError INVALID_ARGUMENT, NOT_FOUND (a role), PERMISSION_DENIED, NOT_INSTALLED
   *
   * @example
   * ```ts
   * const { missing } = await tally.grant({ writers: ['app'], readers: ['dashboard'], workers: ['counter_worker'] })
   * ```
   */
  async grant(access: Access): Promise<Granted> {
    return grant(this.#pool, this.schema, access)
  }

  /**
   * Takes back all rights of these roles on pgtally, but for what they were granted as another kind.
   *
   * @throws PgtallyError INVALID_ARGUMENT, PERMISSION_DENIED, NOT_INSTALLED
   */
  async revoke(access: Access): Promise<void> {
    await revoke(this.#pool, this.schema, access)
  }

  /**
   * Creates a counter. First the triggers, for which it waits until the transactions that write to the source are through, in short
   * attempts that hold up nobody else for long; then the rows that are there already are counted (`backfill`), while the application goes on.
   * When it resolves, the count is exact: stored, carried and pending together. The same definition again changes nothing, and
   * goes on with a backfill that was interrupted.
   *
   * @returns whether it was created
   * @throws PgtallyError INVALID_DEFINITION, DEFINITION_CONFLICT (a different one has the name; says what differs), NOT_FOUND (the queue to
   * follow), PERMISSION_DENIED, LOCK_TIMEOUT (writers held the source for half a minute), NOT_INSTALLED
   */
  async createCounter(name: string, definition: CounterDefinition, options?: CreateCounterOptions): Promise<boolean> {
    return createCounter(this.#pool, this.schema, name, definition, options)
  }

  /**
   * Removes a counter. Counts in the user's table stay as they are, without what was pending; pgtally's own table goes.
   *
   * @throws PgtallyError NOT_FOUND, PERMISSION_DENIED, LOCK_TIMEOUT, NOT_INSTALLED
   */
  async dropCounter(name: string): Promise<void> {
    await dropCounter(this.#pool, this.schema, name)
  }

  /** A handle to a counter by name, whether it exists or not. */
  counter<K extends Key = Key>(name: string): Counter<K> {
    return new Counter(name, this.schema, this.#pool)
  }

  /**
   * Starts a worker in this process. Any number of them, here and elsewhere, share the work.
   *
   * @example
   * ```ts
   * await using worker = tally.worker()
   * ```
   */
  worker(options: WorkerOptions = {}): Worker {
    return new Worker(this.#pool, this.schema, options)
  }

  /**
   * Makes a queue of events of the application's own, for consumers and counters to follow. (A counter has one already.) The same again changes nothing.
   *
   * @returns whether it was made
   * @throws PgtallyError INVALID_ARGUMENT, DEFINITION_CONFLICT (a different one has the name), NOT_INSTALLED
   */
  async createQueue(name: string, options: QueueOptions = {}): Promise<boolean> {
    return createQueue(this.#pool, this.schema, name, options)
  }

  /**
   * Removes a queue with its events.
   *
   * @throws PgtallyError NOT_FOUND, IN_USE (it has counters or consumers), LOCK_TIMEOUT, NOT_INSTALLED
   */
  async dropQueue(name: string): Promise<void> {
    await dropQueue(this.#pool, this.schema, name)
  }

  /** A handle to a queue by name, whether it exists or not: to insert events, and to manage its consumers and their dead letters. */
  queue(name: string): Queue {
    return new Queue(name, this.schema, this.#pool)
  }

  /**
   * Starts a consumer of a queue in this process. Any number of processes may run the same one: each batch is handled by one of them, and that of one that dies by
   * another. In the default mode, what the handler does with `batch.client` commits together with the end of the batch: it happens exactly once.
   *
   * @throws PgtallyError INVALID_ARGUMENT (what will not do in the definition; what is wrong with the queue, `done` says)
   *
   * @example
   * ```ts
   * await using notifier = tally.consumer({
   *   queue: 'post_likes',
   *   name: 'notifier',
   *   handler: async (batch) => {
   *     for await (const { key, delta } of batch) {
   *       if (delta > 0) await batch.client.query('insert into notifications (post_id) values ($1)', [key])
   *     }
   *   },
   * })
   * ```
   */
  consumer<S extends z.ZodType = z.ZodUnknown, M extends ConsumerMode = 'transactional'>(definition: ConsumerDefinition<S, M>, options: ServiceOptions = {}): Consumer {
    return new Consumer(this.#pool, this.schema, parseDefinition(definition), options)
  }

  /**
   * Starts to forward a queue to a counter in another database: the deltas of each batch, summed by key, are added there exactly once, whatever crashes or is cut off, and
   * whenever. What commits from its first start on is forwarded. Any number of processes may run the same one.
   *
   * @throws PgtallyError INVALID_ARGUMENT; what is wrong with the queue, `done` says; what is wrong with the target (it is down, read-only, of another version, not in step),
   * `status()` of the source says, until it is mended and forwarding goes on by itself
   *
   * @example
   * ```ts
   * const total = createTally({ pool: totalPool })
   * await total.createCounter('all_likes', {})
   * await using forward = tally.forward({ queue: 'post_likes', name: 'to total', to: total.counter('all_likes') })
   * ```
   */
  forward(definition: ForwardDefinition, options: ServiceOptions = {}): Consumer {
    return this.consumer(defineForward(definition), options)
  }

  /**
   * A writer for a table with one row for each pair, such as likes: calls made while statements are under way go together with the next one, so one
   * process writes many times as many rows as one by one. Each promise still resolves after the commit that carries its row, and says whether the row is new.
   *
   * The table is looked up with the first call. It runs as the role of the pool, which needs SELECT, INSERT and DELETE on the table, and on nothing else;
   * with UPDATE as well, writers that remove the same rows cannot come into a deadlock. It needs no counter, and works with any.
   *
   * @throws PgtallyError INVALID_ARGUMENT (an option that will not do; what is wrong with the table, each call says)
   *
   * @example
   * ```ts
   * await using likes = tally.writer<number, number>({ table: 'likes', key: 'post_id', member: 'user_id' })
   * const isNew = await likes.add(42, 7)
   * const wasThere = await likes.remove(42, 7)
   * ```
   */
  writer<K extends Key = Key, M extends Key = Key, const C extends string = never>(options: WriterOptions<C>): Writer<K, M, C> {
    return new Writer(this.#pool, options)
  }

  /**
   * Adds up in this process and writes the sums of a counter without a source now and then, for what comes often and need not survive a crash of the process: views,
   * plays. Such a crash loses what was added since the last flush (a second, by default). Otherwise each `add()` counts once.
   *
   * The role of the pool needs EXECUTE on `add_events()` and USAGE on pgtally's schema.
   *
   * @throws PgtallyError INVALID_ARGUMENT
   *
   * @example
   * ```ts
   * await using views = tally.buffered<string>('page_views', { onError: (error) => console.warn(error) })
   * views.add('/home')
   * ```
   */
  buffered<K extends Key = Key>(name: string, options: BufferedOptions = {}): BufferedCounter<K> {
    return new BufferedCounter(name, this.schema, this.#pool, options)
  }

  /** Applies everything that has committed by now, with or without workers beside it. */
  async drain(options?: DrainOptions): Promise<DrainResult> {
    return drain(this.#pool, this.schema, options)
  }

  /**
   * The token of the transaction that `executor` is in, for `counter.waitFor()`.
   *
   * @example
   * ```ts
   * await client.query('begin')
   * await client.query('insert into likes (post_id, user_id) values (42, 7)')
   * const token = await tally.transactionToken(client)
   * await client.query('commit')
   * await tally.counters.post_likes.waitFor(token)
   * ```
   */
  async transactionToken(executor: Executor): Promise<TransactionToken> {
    const [row] = await query<{ token: string }>(executor, 'select pg_current_xact_id()::text as token')
    return row?.token ?? ''
  }

  /**
   * To be called once after a dump was restored into another database cluster, or after an upgrade by pg_upgrade: until then counters there refuse to go on
   * (OTHER_CLUSTER), and events are kept. Nothing is lost or counted twice; the application may have begun to write. Changes nothing where all is well.
   *
   * @returns the queues that were changed
   * @throws PgtallyError NOT_INSTALLED, SCHEMA_TOO_NEW, SCHEMA_TOO_OLD, PERMISSION_DENIED, LOCK_TIMEOUT
   */
  async rebase(): Promise<RebasedQueue[]> {
    return rebase(this.#pool, this.schema)
  }

  /**
   * Where every counter and queue stands.
   *
   * @throws PgtallyError NOT_INSTALLED, SCHEMA_TOO_NEW, SCHEMA_TOO_OLD
   */
  async status(): Promise<Status> {
    await requireInstalled(this.#pool, this.schema)
    return readStatus(this.#pool, this.schema)
  }

  /**
   * Looks for whatever makes counts wrong, late or slow, or soon will, with the remedy for each. Only reads: in short transactions, with a statement timeout, without a lock that a writer would wait for;
   * also on a standby, and where pgtally is not installed or of another version. What the role may not read is named in a finding. The codes are in docs/doctor.md.
   *
   * @throws what the driver says where there is no connection
   *
   * @example
   * ```ts
   * const { findings } = await tally.doctor()
   * for (const { level, code, subject, problem } of findings) if (level === 'error') console.error(code, subject.name, problem)
   * ```
   */
  async doctor(): Promise<Diagnosis> {
    return examine(this.#pool, this.schema)
  }
}

/**
 * pgtally in the database of `pool`. Opens nothing and changes nothing by itself.
 *
 * @example
 * ```ts
 * const tally = createTally({ pool, counters })
 * await tally.install()
 * await tally.counters.post_likes.get(42)
 * ```
 */
export function createTally<Keys extends Record<string, Key> = Record<never, never>>(options: TallyOptions<Keys>): Tally<Keys> {
  return new Tally(options)
}
