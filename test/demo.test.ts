import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'

import { afterEach, beforeEach, describe, expect, test } from 'vitest'

import type { WayResult } from '../src/demo/run.ts'
import { createTally } from '../src/tally.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'

const timeoutMs = 180_000
const brief = ['--seconds', '1', '--connections', '4']

/** The command line's demo without a terminal, and with no server but the one named. */
function startDemo(...options: string[]) {
  const { DATABASE_URL: _, PGHOST: _host, PGHOSTADDR: _address, PGSERVICE: _service, PGDATABASE: _database, ...env } = process.env
  const child = spawn(process.execPath, ['src/cli/main.ts', 'demo', ...brief, ...options], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()))
  const errors = text(child.stderr)
  const ended = once(child, 'close').then(async ([exitCode]) => ({ exitCode: exitCode as number, stdout: output, stderr: await errors }))
  return { child, ended, printed: () => output }
}

interface DemoJson {
  server: { version: string; embedded: boolean; settings: Record<string, string> }
  connections: number
  ways: WayResult[]
}

describe('on a given server', () => {
  let db: TestDatabase

  const schemas = async () => {
    const { rows } = await db.pool.query<{ name: string }>(`select nspname as name from pg_namespace where nspname !~ '^pg_(toast|temp)' order by 1`)
    return rows.map(({ name }) => name)
  }

  beforeEach(async () => {
    db = await createTestDatabase()
    await db.pool.query('create table posts (id bigint primary key, like_count bigint not null); create table likes (post_id bigint)')
    await createTally({ pool: db.pool }).install()
  })
  afterEach(() => db.drop())

  test('every way ends with the exact count, and nothing is left behind', { timeout: timeoutMs }, async () => {
    const before = await schemas()
    const { exitCode, stdout, stderr } = await startDemo('--database-url', db.connectionString, '--json').ended
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })

    const { server, connections, ways } = JSON.parse(stdout) as DemoJson
    expect(server).toMatchObject({ embedded: false, settings: { synchronous_commit: 'on' } })
    expect(connections).toBe(4)
    expect(ways.map(({ way, exact }) => ({ way, exact }))).toEqual([
      { way: 'count', exact: true },
      { way: 'update', exact: true },
      { way: 'pgtally', exact: true },
    ])
    for (const { count, likes, unlikes, likesPerSecond, read } of ways) {
      expect(count).toEqual({ read: 200_000 + likes - unlikes, rows: count.read, acknowledged: count.read })
      expect(Math.min(likes, unlikes, likesPerSecond, read.reads, read.medianMs)).toBeGreaterThan(0)
      expect(unlikes).toBeLessThan(likes)
    }
    expect(ways[2]?.behind.samples).toBeGreaterThan(0)

    expect(await schemas()).toEqual(before)
    const { counters, queues } = await createTally({ pool: db.pool }).status()
    expect({ counters, queues }).toEqual({ counters: [], queues: [] })
    expect((await db.pool.query('select from likes')).rows).toEqual([])
  })

  test('prints plain lines without a terminal', { timeout: timeoutMs }, async () => {
    const { exitCode, stdout } = await startDemo('--database-url', db.connectionString).ended
    expect(exitCode).toBe(0)
    expect(stdout).not.toContain('\u001B')
    for (const way of ['COUNT(*)', 'UPDATE', 'pgtally']) expect(stdout).toContain(`\n${way}: 1 s · `)
    expect(stdout).toMatch(/\n +pgtally +[\d,]+ .* yes\s*\n/)
    expect(stdout).toContain('Each count was exact in the end')
  })

  test('cleans up when it is interrupted', { timeout: timeoutMs }, async () => {
    const before = await schemas()
    const { child, ended, printed } = startDemo('--database-url', db.connectionString, '--seconds', '30')
    await waitFor(async () => printed().includes('COUNT(*): 1 s'), { what: 'the storm' })
    expect(await schemas()).toHaveLength(before.length + 2)
    child.kill('SIGTERM')
    // npm passes a Ctrl-C on that its child had from the terminal already.
    child.kill('SIGTERM')
    const { exitCode, stderr } = await ended
    expect(stderr).toContain('Interrupted (SIGTERM)')
    expect(exitCode).toBe(143)
    expect(await schemas()).toEqual(before)
  })

  test('cleans up when nobody reads its output any more', { timeout: timeoutMs }, async () => {
    const before = await schemas()
    const { child, ended, printed } = startDemo('--database-url', db.connectionString, '--seconds', '30')
    await waitFor(async () => printed().includes('COUNT(*): 1 s'), { what: 'the storm' })
    child.stdout.destroy()
    expect((await ended).exitCode).toBe(141)
    expect(await schemas()).toEqual(before)
  })

  test('cleans up when a connection fails in the middle', { timeout: timeoutMs }, async () => {
    const before = await schemas()
    const { child, ended, printed } = startDemo('--database-url', db.connectionString, '--seconds', '30')
    await waitFor(async () => printed().includes('COUNT(*): 1 s'), { what: 'the storm' })
    // Until it hits one that is at work: one that is idle at that moment is simply replaced.
    await waitFor(
      async () => {
        await db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and state = 'active' and query like 'insert into %likes%'`)
        return child.exitCode !== null
      },
      { what: 'the demo to end' },
    )
    const { exitCode, stderr } = await ended
    expect(stderr).toContain('terminating connection')
    expect(exitCode).toBe(1)
    expect(await schemas()).toEqual(before)
  })

  test('does not work in a schema that exists', { timeout: timeoutMs }, async () => {
    const before = await schemas()
    const { exitCode, stderr } = await startDemo('--database-url', db.connectionString, '--schema', 'pgtally').ended
    expect(stderr).toContain('The schema "pgtally" exists')
    expect(exitCode).toBe(2)
    expect(await schemas()).toEqual(before)
  })
})

test('starts a server of its own when none is given', { timeout: timeoutMs }, async () => {
  const { exitCode, stdout, stderr } = await startDemo('--json').ended
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  const { server, ways } = JSON.parse(stdout) as DemoJson
  expect(server).toMatchObject({ embedded: true, settings: { fsync: 'on', synchronous_commit: 'on' } })
  expect(ways.map(({ exact }) => exact)).toEqual([true, true, true])
})
