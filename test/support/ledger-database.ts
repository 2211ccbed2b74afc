import type { Batch, ConsumerStatus, QueueOptions, Tally } from '../../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './database.ts'
import { column, installed } from './fixtures.ts'

/** A handler's batch, as far as `writeDown()` needs it. */
type Writable = Batch & { client: { query(text: string, values: unknown[]): Promise<unknown> } }

export interface Ledger {
  readonly db: TestDatabase
  readonly tally: Tally
  /** A queue with a registered consumer `c`. */
  createQueue(options?: QueueOptions): Promise<string>
  /** Events with keys from one number to another. */
  insert(queue: string, from: number, to?: number, data?: unknown): Promise<unknown>
  consumerOf(queue: string, name?: string): Promise<ConsumerStatus | undefined>
  /** Resolves when the consumer `c` has nothing before it. */
  finished(queue: string): Promise<unknown>
  /** A handler that writes each event down, in the batch's transaction. */
  writeDown(queue: string): (batch: Writable) => Promise<void>
  /** Of what was written down, in order. */
  keys(queue: string): Promise<string[]>
}

/** For the consumers of a test. */
export const fast = { pollIntervalMs: 5, name: 'c' } as const
export const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => String(from + index))

/** A database for tests of consumers, with a table that handlers write to. */
export async function createLedger(): Promise<Ledger> {
  const db = await createTestDatabase()
  const tally = await installed(db)
  await db.pool.query('create table effects (consumer text, id text, key text, delta bigint, data jsonb, attempt integer)')
  let queues = 0
  const consumerOf: Ledger['consumerOf'] = async (queue, name = 'c') => (await tally.status()).consumers.find((consumer) => consumer.queue === queue && consumer.name === name)
  return {
    db,
    tally,
    consumerOf,
    createQueue: async (options) => {
      const queue = `queue_${++queues}`
      await tally.createQueue(queue, options)
      await tally.queue(queue).register('c')
      return queue
    },
    insert: (queue, from, to = from, data) =>
      db.pool.query('select pgtally.insert_event($1::text, k::text, 1, $4::jsonb) from generate_series($2::int, $3::int) k', [queue, from, to, data === undefined ? null : JSON.stringify(data)]),
    finished: (queue) =>
      waitFor(
        async () => {
          const consumer = await consumerOf(queue)
          return consumer?.pendingEvents === 0 && consumer.retryingEvents === 0
        },
        { what: 'a consumer that has finished everything' },
      ),
    writeDown: (queue) => async (batch) => {
      for await (const { id, key, delta, data, attempt } of batch) {
        await batch.client.query('insert into effects values ($1, $2, $3, $4, $5, $6)', [queue, id, key, delta, JSON.stringify(data), attempt])
      }
    },
    keys: (queue) => column<string>(db.pool, 'select key from effects where consumer = $1 order by key::int', [queue]),
  }
}

/** The pool, with another `query()`. */
export const poolWith = ({ pool }: TestDatabase, query: (text: string, values: unknown[]) => Promise<unknown>) =>
  new Proxy(pool, {
    get(target, property) {
      if (property === 'query') return query
      const member: unknown = Reflect.get(target, property, target)
      return typeof member === 'function' ? member.bind(target) : member
    },
  })
