import { Command, InvalidArgumentError, Option } from 'commander'

import type { BucketDefinition, CounterDefinition } from '../counters/definition.ts'
import { PgtallyError } from '../errors.ts'
import { databaseCommand, duration, interval, printJson, printLine, wholeNumber, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'
import { collect, withProgress } from './measurement.ts'
import { formatTable } from '../table.ts'

interface CreateOptions extends ConnectionOptions {
  source?: string
  sourceKey?: string
  where?: string
  sum?: string
  data?: string[]
  sourceTime?: string
  target?: string
  targetKey?: string
  targetColumn?: string
  onMissing?: 'drop' | 'insert' | 'error'
  keyType?: 'smallint' | 'integer' | 'bigint' | 'uuid' | 'text'
  queue?: string
  rotationPeriod?: number
  retain?: number
  milestones?: CounterDefinition['milestones']
  bucket?: BucketDefinition[]
  ranking?: true
  halfLife?: string[]
  backfill: boolean
}

export function counterCommand(): Command {
  return new Command('counter')
    .description('create, list, reset and drop counters')
    .addCommand(createCommand())
    .addCommand(listCommand())
    .addCommand(resetCommand())
    .addCommand(dropCommand())
}

function createCommand(): Command {
  return databaseCommand('create')
    .description('create a counter, and count the rows that are there already while the application writes')
    .argument('<name>', 'the name of the counter')
    .option('--source <table>', 'the table whose rows are counted')
    .option('--source-key <column>', 'the column that says for what each row counts')
    .option('--where <sql>', 'count only rows for which this condition is true')
    .option('--sum <sql>', 'add up this whole number instead of counting rows')
    .option('--data <columns>', 'columns, separated by commas, that consumers get with each event', (text) => text.split(','))
    .option('--source-time <column>', 'the column that says when what a row stands for happened, for --bucket and --half-life')
    .option('--target <table>', "the table to store the count in (default: a table of pgtally's own)")
    .option('--target-key <column>', 'its key column')
    .option('--target-column <column>', 'its column for the count')
    .addOption(new Option('--on-missing <action>', 'what to do for a key without a row in the target').choices(['drop', 'insert', 'error']))
    .addOption(
      new Option('--key-type <type>', 'the type of the keys, where neither source nor target tells').choices(['smallint', 'integer', 'bigint', 'uuid', 'text']),
    )
    .option('--queue <name>', 'follow the queue of another counter instead of having a source')
    .option('--rotation-period <time>', 'how long one slot of the queue is written (default: 5m, or --retain if longer)', duration)
    .option('--retain <time>', 'keep events at least that long after they were applied, such as 1h, for consumers that want to read again', duration)
    .option('--milestones <thresholds>', 'record when a count reaches them, and hand that on: whole numbers separated by commas, or powers-of-ten', thresholds)
    .option('--bucket <width:retain[@zone]>', 'keep counts by time, such as "1 hour:30 days" or "1 day:forever@Europe/Berlin"; may be given several times', bucket)
    .option('--ranking', 'keep what `pgtally top` of all time reads')
    .option('--half-life <time>', 'keep scores for `pgtally trending`, in which an event weighs half after that time; may be given several times', (text, earlier: string[] | undefined) => collect(interval(text), earlier))
    .option('--no-backfill', 'leave counting the rows that are there already to a later `pgtally reconcile`')
    .addHelpText('after', '\nExample:\n  pgtally counter create post_likes --source likes --source-key post_id \\\n    --target posts --target-key id --target-column like_count')
    .action((name: string, options: CreateOptions) =>
      withConnection(options, async ({ tally }) => {
        const { backfill } = options
        const created = await withProgress((onProgress) => tally.createCounter(name, definition(options), { backfill, onProgress }))
        printLine(created ? `Created the counter "${name}".` : `The counter "${name}" exists already, with the same definition.`)
        if (!backfill && options.source !== undefined) printLine(`Rows that were there before are not counted yet: pgtally reconcile ${name}`)
      }),
    )
}

function definition(options: CreateOptions): CounterDefinition {
  const { source: table, sourceKey, target, targetKey, targetColumn } = options
  const source = together({ '--source': table, '--source-key': sourceKey })
  const stored = together({ '--target': target, '--target-key': targetKey, '--target-column': targetColumn })
  if (source === undefined && (options.where ?? options.sum ?? options.data ?? options.sourceTime) !== undefined) {
    throw new PgtallyError('INVALID_ARGUMENT', '--where, --sum, --data and --source-time need --source, whose rows they are about.')
  }
  return {
    source: source && { table: source['--source'], key: source['--source-key'], where: options.where, sum: options.sum, data: options.data, time: options.sourceTime },
    target: stored && { table: stored['--target'], key: stored['--target-key'], column: stored['--target-column'] },
    onMissing: options.onMissing,
    keyType: options.keyType,
    queue: options.queue,
    rotationPeriodMs: options.rotationPeriod,
    retainMs: options.retain,
    milestones: options.milestones,
    buckets: options.bucket,
    ranking: options.ranking,
    trending: options.halfLife?.map((halfLife) => ({ halfLife })),
  }
}

function bucket(text: string, earlier: BucketDefinition[] = []): BucketDefinition[] {
  const [, width, retain, timeZone] = /^([^:]+):([^:@]+)(?:@(.+))?$/.exec(text) ?? []
  if (width === undefined || retain === undefined) throw new InvalidArgumentError('It must be a width and how long it is kept, such as "1 hour:30 days" or "1 day:forever@Europe/Berlin".')
  return [...earlier, { width, retain, timeZone }]
}

function thresholds(text: string): CounterDefinition['milestones'] {
  return text === 'powers-of-ten' ? 'powers of ten' : text.split(',').map(wholeNumber(1))
}

/** Options that are given all or none. */
function together<K extends string>(given: Record<K, string | undefined>): Record<K, string> | undefined {
  const missing = Object.entries(given).flatMap(([option, value]) => (value === undefined ? [option] : []))
  if (missing.length === Object.keys(given).length) return undefined
  if (missing.length > 0) throw new PgtallyError('INVALID_ARGUMENT', `${Object.keys(given).join(', ')} belong together: ${missing.join(', ')} is missing.`)
  return given as Record<K, string>
}

function listCommand(): Command {
  return databaseCommand('list')
    .description('list the counters')
    .option('--json', 'print JSON')
    .action((options: ConnectionOptions & { json?: true }) =>
      withConnection(options, async ({ tally }) => {
        const { counters } = await tally.status()
        const listed = counters.map(({ name, queue, source, target }) => ({ name, queue, source, target }))
        if (options.json) printJson(listed)
        else if (listed.length === 0) printLine('There are no counters.')
        else printLine(formatTable(['counter', 'queue', 'source', 'target'], listed.map(({ name, queue, source, target }) => [name, queue, source ?? 'add()', target])))
      }),
    )
}

function resetCommand(): Command {
  return databaseCommand('reset')
    .description('set counts back to 0, for a counter without a source')
    .argument('<name>', 'the name of the counter')
    .option('--key <key>', 'the count of this key; may be given several times', collect)
    .option('--all', 'the counts of all keys')
    .action((name: string, { key: keys = [], all = false, ...options }: ConnectionOptions & { key?: string[]; all?: boolean }) =>
      withConnection(options, async ({ tally }) => {
        if (all === (keys.length > 0)) throw new PgtallyError('INVALID_ARGUMENT', 'Give either --key or --all.')
        const counter = tally.counter(name)
        if (all) await counter.resetAll()
        else for (const key of keys) await counter.reset(key)
        printLine(all ? `Reset all counts of "${name}".` : `Reset ${keys.length === 1 ? 'one count' : `${keys.length} counts`} of "${name}".`)
      }),
    )
}

function dropCommand(): Command {
  return databaseCommand('drop')
    .description('drop a counter; counts in your own table stay as they are')
    .argument('<name>', 'the name of the counter')
    .action((name: string, options: ConnectionOptions) =>
      withConnection(options, async ({ tally }) => {
        await tally.dropCounter(name)
        printLine(`Dropped the counter "${name}".`)
      }),
    )
}
