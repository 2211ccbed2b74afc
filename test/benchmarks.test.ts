import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { text } from 'node:stream/consumers'

import { SaxesParser } from 'saxes'
import { afterEach, beforeEach, expect, inject, test } from 'vitest'

import { createTestDatabase, waitFor } from './support/database.ts'

const timeoutMs = 180_000
const brief = ['--quick', '--seconds', '0.2']

/** `npm run bench` on the server of the tests. No speed is looked at here. */
function startBench(...options: string[]) {
  const { PGQUE_SQL: _, ...env } = process.env
  const child = spawn(process.execPath, ['examples/benchmarks/main.ts', '--database-url', inject('serverUrl'), ...options], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  let progress = ''
  child.stderr.on('data', (chunk: Buffer) => (progress += chunk.toString()))
  const output = text(child.stdout)
  const ended = once(child, 'close').then(async ([exitCode]) => ({ exitCode: exitCode as number, stdout: await output, stderr: progress }))
  return { child, ended, progress: () => progress }
}

/** Those of the process `pid`, which is given up with it. */
async function databasesOf(pid: number | undefined): Promise<unknown[]> {
  await using db = await createTestDatabase()
  return (await db.pool.query('select datname from pg_database where datname = $1', [`pgtally_bench_${pid}`])).rows
}

interface Json {
  machine: { cores: number; server: Record<string, string> }
  versions: Record<string, string>
  results: {
    id: string
    rows: { name: string; samples: Record<string, number[]> }[]
    summary: Record<string, Record<string, { median: number; ratio?: number }>>
    notRun?: { name: string; reason: string }[]
    failed?: unknown[]
  }[]
}

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(path.join(tmpdir(), 'pgtally-bench-'))
})
afterEach(() => rm(directory, { recursive: true }))

test('measures what it is asked for, and says what could not run', { timeout: timeoutMs }, async () => {
  const json = path.join(directory, 'results.json')
  const charts = path.join(directory, 'charts')
  const { child, ended } = startBench(...brief, '--only', 'zipf', '--only', 'lag', '--pgque', path.join(directory, 'missing.sql'), '--json', json, '--charts', charts)
  const { exitCode, stdout, stderr } = await ended
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 })
  expect(stderr).toContain('zipf 1/1 pgtally:')
  expect(stdout).toMatch(/\n pgtally +[\d,]+ +\d+\.\d\d +1\.00 /)
  expect(stdout).toContain('not run: PgQue (PgQ in SQL): there is no file')

  const { machine, versions, results } = JSON.parse(await readFile(json, 'utf8')) as Json
  expect(machine).toMatchObject({ server: { synchronous_commit: 'on' } })
  expect(Object.keys(versions)).toContain('graphile-worker')
  expect(results.map(({ id, failed }) => ({ id, failed }))).toEqual([
    { id: 'zipf', failed: [] },
    { id: 'lag', failed: [] },
  ])
  const [zipf, lag] = results
  for (const { samples } of zipf?.rows ?? []) expect(samples).toEqual({ rate: [expect.any(Number)] })
  expect(zipf?.rows.map(({ name }) => name)).toEqual(expect.arrayContaining(['bare INSERT', 'pgtally', 'UPDATE in the same statement', 'slotted counters', 'pg-boss, a job per like', 'graphile-worker, a job per like']))
  expect(zipf?.summary['bare INSERT']?.['rate']).toMatchObject({ median: expect.any(Number), ratio: 1 })
  expect(zipf?.notRun?.map(({ name }) => name)).toContain('PgQue (PgQ in SQL)')
  expect(lag?.rows.map(({ name }) => name)).toEqual(expect.arrayContaining(['pgtally, 50 %', 'pgtally, 90 %']))

  expect((await readdir(charts)).toSorted()).toEqual(['lag-50-percent.svg', 'lag-90-percent.svg', 'zipf.svg'])
  for (const file of await readdir(charts)) {
    const svg = await readFile(path.join(charts, file), 'utf8')
    const words: string[] = []
    const parser = new SaxesParser()
    parser.on('text', (found) => words.push(found))
    parser.on('error', (error) => expect.fail(`${file}: ${error.message}`))
    parser.write(svg).close()
    expect(words).toContain('pgtally')
    expect(svg).not.toContain('NaN')
  }
  expect(await databasesOf(child.pid)).toEqual([])
})

test('holds every bucket and list against the plain counts', { timeout: timeoutMs }, async () => {
  const json = path.join(directory, 'results.json')
  const { exitCode, stderr } = await startBench(...brief, '--only', 'buckets', '--only', 'top', '--json', json).ended
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 })
  const { results } = JSON.parse(await readFile(json, 'utf8')) as Json
  expect(results.map(({ id, failed = [] }) => ({ id, failed }))).toEqual(
    [
      'buckets-user-now', 'buckets-user-hour', 'buckets-own-now', 'buckets-own-hour', 'buckets-writing',
      'top-zipf', 'top-writing-zipf', 'top-uniform', 'top-writing-uniform',
    ].map((id) => ({ id, failed: [] })),
  )
  expect(results[0]?.rows.map(({ samples }) => Object.keys(samples))).toEqual(Array.from({ length: 4 }, () => ['empty', 'filled']))
  expect(results[5]?.rows.map(({ name }) => name)).toEqual(expect.arrayContaining(['top', 'top of an hour', 'trending', 'spikes of an hour', 'series of 60 hours']))
  // Its own column is in no index, so hardly an update writes an index entry; where it is in one, each does.
  const [plain, ranked, indexed] = Object.values(results[6]?.summary ?? {}).map(({ hot }) => hot?.median)
  expect(plain).toBeGreaterThan(90)
  expect(ranked).toBeGreaterThan(90)
  expect(indexed).toBe(0)
})

test('names the scenarios there are', async () => {
  const { exitCode, stdout, stderr } = await startBench('--only', 'hottest').ended
  expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' })
  expect(stderr).toMatch(/'hottest' is invalid\. There are idle, hot, zipf, /)
})

test('ends on Ctrl-C and leaves nothing behind', { timeout: timeoutMs }, async () => {
  const { child, ended, progress } = startBench('--only', 'end-to-end', '--seconds', '20')
  await waitFor(async () => progress().includes('connecting'), { what: 'the start' })
  await waitFor(async () => (await databasesOf(child.pid)).length === 1, { what: 'a database' })
  child.kill('SIGINT')
  const { exitCode, stderr } = await ended
  expect(exitCode).toBe(130)
  expect(stderr).toContain('Interrupted (SIGINT); everything is stopped.')
  expect(await databasesOf(child.pid)).toEqual([])
})
