import { InvalidArgumentError } from 'commander'
import type { Command } from 'commander'

import type { Bucket } from '../counters/series.ts'
import { formatTable } from '../table.ts'
import { databaseCommand, interval, printJson, printLine, withConnection } from './command.ts'
import type { ConnectionOptions } from './command.ts'

interface SeriesCommandOptions extends ConnectionOptions {
  width: string
  from?: Date
  to?: Date
  json?: true
}

export function seriesCommand(): Command {
  return databaseCommand('series')
    .description("show a key's count by time, as a chart")
    .argument('<counter>', 'the counter')
    .argument('<key>', 'the key')
    .requiredOption('--width <time>', "of each bucket, such as 1h or '1 month': what the buckets in the counter's definition can be put together to", interval)
    .option('--from <time>', 'buckets that begin then or later, such as 2026-01-31 or 2026-01-31T10:00Z (default: the last 60)', time)
    .option('--to <time>', 'and before then (default: now)', time)
    .option('--json', 'print JSON')
    .addHelpText('after', "\nExample:\n  pgtally series post_likes 42 --width '1 day' --from '2026-01-01 00:00 Europe/Berlin'")
    .action((name: string, key: string, { width, from, to, json, ...connection }: SeriesCommandOptions) =>
      withConnection(connection, async ({ tally }) => {
        const buckets = await tally.counter(name).series(key, { width, from, to })
        if (json) printJson(buckets)
        else if (buckets.length === 0) printLine('There is no bucket in that time.')
        else printLine(formatSeries(buckets, process.stdout.columns))
      }),
    )
}

function time(text: string): Date {
  const date = new Date(text)
  if (!/^\d{4}-\d\d-\d\d/.test(text) || Number.isNaN(date.getTime())) throw new InvalidArgumentError('It must be a time, such as 2026-01-31 or 2026-01-31T10:00Z.')
  return date
}

/** A line with a bar for each bucket; `columns` wide, where that is known. */
function formatSeries(buckets: readonly Bucket[], columns = 80): string {
  // As short as tells them apart: seconds only where there are some.
  const times = buckets.map(({ start }) => start.toISOString().slice(0, 19).replace('T', ' '))
  const same = ['00:00:00', ':00'].find((ending) => times.every((text) => text.endsWith(ending))) ?? ''
  const starts = times.map((text) => text.slice(0, text.length - same.length).trimEnd())
  const counts = buckets.map(({ count }) => count.toLocaleString('en-US'))
  const head = ['from (UTC)', 'count']
  const longest = (texts: readonly string[]) => Math.max(...texts.map(({ length }) => length))
  // Each cell is padded by a space on both sides, and there is one between them.
  const room = Math.max(8, columns - longest([...starts, 'from (UTC)']) - longest([...counts, 'count']) - 8)
  const highest = Math.max(1, ...buckets.map(({ count }) => count))
  return formatTable([...head, ''], buckets.map(({ count }, index) => [starts[index] ?? '', counts[index] ?? '', bar(count / highest, room)]), [1])
}

/** In eighths of a character. What took back more than it counted has none. */
function bar(part: number, width: number): string {
  const eighths = Math.max(0, Math.round(part * width * 8))
  return `${'█'.repeat(Math.floor(eighths / 8))}${['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths % 8]}`
}
