import type { CounterDefinition, Tally } from '../../../src/index.ts'
import type { Bench } from '../bench.ts'
import { startProcess } from '../processes.ts'
import type { Process } from '../processes.ts'
import { bareStatements, statements, storedInPosts } from './method.ts'
import type { Method, OpenMethod } from './method.ts'

const trigger = (options: Omit<CounterDefinition, 'source' | 'target'> = {}, name = 'pgtally', time?: string): Method => ({
  name,
  async open(bench, tables) {
    const counter = tables.schema
    await bench.tally.createCounter(counter, { source: { table: tables.likes, key: 'post_id', time }, target: { table: tables.posts, key: 'id', column: 'like_count' }, ...options })
    return { ...runByTally(bench, counter), ...bareStatements(tables), stored: storedInPosts(tables) }
  },
})

/** As the README has it: a counter on the table, and a worker with its defaults. */
export const tallyTrigger = trigger()

export const threeWidths = {
  buckets: [
    { width: '1 minute', retain: '2 hours' },
    { width: '1 hour', retain: '30 days' },
    { width: '1 day', retain: 'forever' },
  ],
} satisfies CounterDefinition

export const oneHalfLife = { trending: [{ halfLife: '6 hours' }] } satisfies CounterDefinition

/** Events have the time of their row, for buckets of three widths and a half-life. */
export const tallyTimed = trigger({ ...threeWidths, ...oneHalfLife }, 'pgtally with a time column', 'created_at')

/** With slots that are changed more often than each five minutes. */
export const tallyRotating = (rotationPeriodMs: number) => trigger({ rotationPeriodMs })

/** The counts are in pgtally's own table, which no foreign key refers to. */
export const tallyOwnTable: Method = {
  name: 'pgtally, counts in a table of its own',
  async open(bench, tables) {
    const counter = tables.schema
    await bench.tally.createCounter(counter, { source: { table: tables.likes, key: 'post_id' } })
    const { rows } = await bench.pool.query<{ table: string }>('select target_table::text as table from pgtally.counter where name = $1', [counter])
    return { ...runByTally(bench, counter), ...bareStatements(tables), stored: `select key as post_id, value as n from ${rows[0]?.table}` }
  },
}

/** No trigger: the application's own statement emits the event. Nothing makes sure that every like is counted. */
export const tallyStatement: Method = {
  name: 'pgtally without a trigger, event in the same statement',
  async open(bench, tables) {
    const counter = tables.schema
    await bench.tally.createCounter(counter, { target: { table: tables.posts, key: 'id', column: 'like_count' } })
    const { rows } = await bench.pool.query<{ events: string }>('select pgtally.event_table($1)::text as events', [counter])
    const emit = (delta: string) => `insert into ${rows[0]?.events} (ev_key, ev_delta) select post_id, ${delta} from changed`
    return {
      ...runByTally(bench, counter),
      ...statements(tables, (delta) => emit(`${delta}`), `${emit('count(*)')} group by post_id`),
      stored: storedInPosts(tables),
    }
  },
}

function runByTally(bench: Bench, counter: string): Omit<OpenMethod, 'like' | 'unlike'> {
  return {
    consume: (onLine) => startWorker(bench, onLine),
    settle: () => drain(bench.tally),
    // Its triggers see the TRUNCATE, so the counts go back to zero by themselves.
    reset: () => drain(bench.tally),
    schemas: ['pgtally'],
    close: () => bench.tally.dropCounter(counter),
  }
}

/** A worker process with default settings. With `onLine` it says more, such as each batch's time. */
export function startWorker({ connectionString }: Bench, onLine?: (line: string) => void): Promise<Process> {
  const main = new URL('../../../src/cli/main.ts', import.meta.url)
  return startProcess(main, ['worker', '--database-url', connectionString, ...(onLine ? ['--log-level', 'debug'] : [])], onLine)
}

export async function drain(tally: Tally): Promise<void> {
  const { failed } = await tally.drain()
  for (const { counter, error } of failed) throw new Error(`${counter} could not apply all: ${error}`)
}
