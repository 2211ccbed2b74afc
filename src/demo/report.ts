import { availableParallelism } from 'node:os'

import type { Pool } from 'pg'

import { formatTable } from '../table.ts'
import { likesBefore } from './playground.ts'
import type { WayResult } from './run.ts'

export interface ServerFacts {
  version: string
  /** Started for this demo. */
  embedded: boolean
  /** As the server has them: `fsync`, `synchronous_commit`, … */
  settings: Record<string, string>
}

export const formatNumber = (value: number) => Math.round(value).toLocaleString('en-US')
export const formatMs = (value: number) => (value < 9.95 ? `${value.toFixed(1)} ms` : `${formatNumber(value)} ms`)
export const formatCount = (value: number, one: string) => `${formatNumber(value)} ${value === 1 ? one : `${one}s`}`

export async function readServerFacts(pool: Pool, embedded: boolean): Promise<ServerFacts> {
  const { rows } = await pool.query<{ name: string; value: string }>(
    `select name, current_setting(name) as value from pg_catalog.pg_settings
    where name in ('server_version', 'fsync', 'synchronous_commit', 'shared_buffers', 'max_wal_size')`,
  )
  const { server_version: version = 'of an unknown version', ...settings } = Object.fromEntries(rows.map(({ name, value }) => [name, value]))
  return { version, embedded, settings }
}

/** What is about to happen, and where. */
export function describeSetting(server: ServerFacts, connections: number, seconds: number): string[] {
  const settings = Object.entries(server.settings).map(([name, value]) => `${name} ${value}`)
  const durable = server.settings['fsync'] === 'on' && server.settings['synchronous_commit'] !== 'off'
  const machine = `this machine's ${formatCount(availableParallelism(), 'processor')}`
  return [
    ...wrap(
      `One celebrity post, with ${formatNumber(likesBefore)} likes before the storm. ${formatCount(connections, 'connection')} like and unlike it for ` +
        `${formatCount(seconds, 'second')} while one more reads its count every 20 ms: three ways, one after the other. No foreign key from likes to posts.`,
    ),
    ...wrap(`PostgreSQL ${server.version}${server.embedded ? ', embedded' : ''}: ${settings.join(', ')}.`),
    ...(durable ? [] : ['This server does not wait for the disk: a durable one gives other figures.']),
    server.embedded ? `Server, clients and pgtally's worker share ${machine}.` : `Clients and pgtally's worker share ${machine}.`,
  ]
}

export function formatResults(results: readonly WayResult[]): string {
  return formatTable(
    ['', 'likes/s', 'read', 'p99', 'behind', 'at most', 'count', 'exact'],
    results.map(({ way, name, likesPerSecond, read, behind, count, exact }) => [
      name,
      formatNumber(likesPerSecond),
      formatMs(read.medianMs),
      formatMs(read.p99Ms),
      way === 'pgtally' ? formatMs(behind.medianMs) : '0',
      way === 'pgtally' ? formatMs(behind.maxMs) : '0',
      formatNumber(count.read),
      exact ? 'yes' : 'NO',
    ]),
    [1, 2, 3, 4, 5, 6],
  )
}

/** What these results show, and nothing else. */
export function describeResults(results: readonly WayResult[]): string[] {
  const find = (way: WayResult['way']) => results.find((result) => result.way === way)
  const [count, update, tally] = [find('count'), find('update'), find('pgtally')]
  const legend = 'likes/s: likes and unlikes, each acknowledged before the connection sends its next. read: median. behind: median, 0 where nothing can be.'
  const conclusions: string[] = []
  if (count !== undefined && update !== undefined && tally !== undefined) {
    const { behind } = tally
    conclusions.push(
      `In this run pgtally took in ${timesAsMany(tally.likesPerSecond, update.likesPerSecond)} likes as UPDATE, and ` +
        `${timesAsMany(tally.likesPerSecond, count.likesPerSecond)} as COUNT(*).`,
      `A read of the stored count took ${formatMs(tally.read.medianMs)}, COUNT(*) over ${formatNumber(count.count.rows)} rows ${formatMs(count.read.medianMs)}.`,
      `pgtally's stored count was ${formatMs(behind.medianMs)} (${formatCount(behind.medianLikes, 'like')}) behind, at most ${formatMs(behind.maxMs)} ` +
        `(${formatNumber(behind.maxLikes)}) in ${formatCount(behind.samples, 'sample')}, and had all ${formatMs(tally.catchUpMs)} after the last like.`,
    )
  }
  return [...wrap(legend), '', ...[...conclusions, ...describeExactness(results)].flatMap(wrap)]
}

function describeExactness(results: readonly WayResult[]): string[] {
  const wrong = results.filter(({ exact }) => !exact)
  if (wrong.length === 0) return ['Each count was exact in the end: equal to the rows, and to what the server had acknowledged to the clients.']
  return wrong.map(
    ({ name, count }) =>
      `${name} was WRONG: it read ${formatNumber(count.read)}, there were ${formatNumber(count.rows)} rows, ` +
      `and the clients had acknowledgements for ${formatNumber(count.acknowledged)}.`,
  )
}

function timesAsMany(value: number, other: number): string {
  if (other === 0) return value === 0 ? 'as many' : 'more'
  return `${(value / other).toFixed(value < other * 1.95 ? 2 : 1)} times as many`
}

/** In lines that fit an ordinary terminal. */
function wrap(text: string): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const line = lines.at(-1)
    if (line !== undefined && line.length + 1 + word.length <= 79) lines[lines.length - 1] = `${line} ${word}`
    else lines.push(word)
  }
  return lines
}
