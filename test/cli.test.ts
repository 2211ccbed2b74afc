import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { afterEach, beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like, stored, value } from './support/fixtures.ts'
import { dedicatedServer } from './support/server.ts'

const main = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url))
let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const started: (() => void)[] = []
afterEach(() => {
  for (const kill of started.splice(0)) kill()
})

/** A process of the command line, with nothing of this one's connection settings unless given. */
function start(args: string[], env: Record<string, string> = { DATABASE_URL: db.connectionString }) {
  const inherited = Object.entries(process.env).filter(([name]) => name !== 'DATABASE_URL' && !name.startsWith('PG'))
  const child = spawn(process.execPath, [main, ...args], { env: { ...Object.fromEntries(inherited), ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
  started.push(() => child.kill('SIGKILL'))
  const output = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output.stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output.stderr += text))
  const ended = once(child, 'close').then(([code]) => ({ code: code as number | null, ...output }))
  const said = (what: string) => waitFor(async () => output.stdout.includes(what), { what: `"${what}"` })
  return { child, output, ended, said }
}

const run = (...args: string[]) => start(args).ended
const succeeded = { code: 0, stderr: '' }

describe('help and usage', () => {
  test('each command explains itself', async () => {
    const commands = [[], ['install'], ['uninstall'], ['counter'], ['counter', 'create'], ['counter', 'list'], ['counter', 'drop'], ['worker'], ['drain'], ['status']]
    const results = await Promise.all(commands.map((command) => run(...command, '--help')))
    for (const [index, result] of results.entries()) {
      expect(result).toMatchObject(succeeded)
      expect(result.stdout).toContain(`Usage: ${['pgtally', ...(commands[index] ?? [])].join(' ')}`)
    }
    expect(await run('--version')).toMatchObject({ ...succeeded, stdout: expect.stringMatching(/^\d+\.\d+\.\d+/) })
  })

  test('wrong usage is exit code 2, with the reason', async () => {
    const wrong: [args: string[], says: RegExp][] = [
      [['instal'], /unknown command 'instal'/],
      [['install', '--schemas', 'x'], /unknown option '--schemas'/],
      [['install', '--schema', 'No Good'], /"No Good"/],
      [['counter', 'create'], /missing required argument 'name'/],
      [['counter', 'create', 'x', '--source', 'likes'], /--source-key is missing/],
      [['counter', 'create', 'x', '--where', 'true'], /--where.*--source/],
      [['counter', 'create', 'x', '--source', 'nowhere', '--source-key', 'y'], /"nowhere"/],
      [['counter', 'create', 'x', '--key-type', 'date'], /date/],
      [['worker', '--concurrency', '0'], /--concurrency.*1 or more/],
      [['worker', '--poll-interval', 'soon'], /--poll-interval/],
      [['drain', '--timeout', '-1'], /--timeout/],
      [['uninstall'], /--yes/],
    ]
    const results = await Promise.all(wrong.map(([args]) => run(...args)))
    for (const [index, result] of results.entries()) {
      expect(result).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(wrong[index]?.[1] ?? /./) })
    }
    expect(await value(db.pool, `select to_regnamespace('pgtally') is not null`)).toBe(true)
  })
})

test('from install to uninstall', async () => {
  await using own = await createTestDatabase()
  const cli = (...args: string[]) => start([...args, '--database-url', own.connectionString], {}).ended
  await own.pool.query('create table posts (id bigint primary key, n int not null default 0); create table likes (post_id bigint); insert into posts values (1), (2); insert into likes values (1)')
  expect(await cli('status')).toMatchObject({ code: 1, stderr: expect.stringMatching(/not installed.*pgtally install/) })
  expect(await cli('install')).toMatchObject({ ...succeeded, stdout: expect.stringMatching(/^Installed version \d+ in the schema "pgtally"/) })
  expect(await cli('install')).toMatchObject({ ...succeeded, stdout: expect.stringContaining('already') })
  expect(await cli('counter', 'list')).toMatchObject({ ...succeeded, stdout: 'There are no counters.\n' })
  const create = ['counter', 'create', 'likes', '--source', 'likes', '--source-key', 'post_id', '--target', 'posts', '--target-key', 'id', '--target-column', 'n']
  expect(await cli(...create)).toMatchObject({ ...succeeded, stdout: expect.stringContaining('Created') })
  expect(await cli(...create)).toMatchObject({ ...succeeded, stdout: expect.stringContaining('exists already') })
  expect(await cli(...create, '--where', 'post_id > 1')).toMatchObject({ code: 1, stderr: expect.stringContaining('another definition') })
  expect(JSON.parse((await cli('counter', 'list', '--json')).stdout)).toEqual([{ name: 'likes', queue: 'likes', source: 'public.likes', target: 'public.posts.n' }])
  await own.pool.query('insert into likes values (2), (2)')
  expect(JSON.parse((await cli('status', '--json')).stdout)).toMatchObject({ counters: [{ name: 'likes', pendingEvents: 1 }], queues: [{ name: 'likes' }] })
  expect(JSON.parse((await cli('drain', '--json')).stdout)).toEqual({ events: 1, failed: [] })
  expect((await own.pool.query('select id::int, n from posts order by id')).rows).toEqual([{ id: 1, n: 1 }, { id: 2, n: 2 }])
  expect(await cli('status')).toMatchObject({ ...succeeded, stdout: expect.stringMatching(/likes.*public\.posts\.n/) })
  expect(await cli('counter', 'drop', 'likes')).toMatchObject({ ...succeeded, stdout: expect.stringContaining('Dropped') })
  expect(await cli('counter', 'drop', 'likes')).toMatchObject({ code: 1, stderr: expect.stringContaining('There is no counter "likes"') })
  expect(await cli('uninstall', '--yes')).toMatchObject({ ...succeeded, stdout: expect.stringContaining('Removed') })
  expect(await cli('uninstall', '--yes')).toMatchObject({ ...succeeded, stdout: expect.stringContaining('There was no') })
})

test('a counter that cannot go on is exit code 1 of drain and status', async () => {
  await using own = await createTestDatabase()
  const ownTally = await installed(own)
  const blog = await createBlog(own, ownTally)
  await own.pool.query(`alter table ${blog.posts} drop like_count`)
  await like(own.pool, blog, 1)
  const env = { DATABASE_URL: own.connectionString }
  expect(await start(['drain'], env).ended).toMatchObject({ code: 1, stdout: expect.stringContaining('like_count') })
  await own.pool.query('select pgtally.record_error($1, $2)', [blog.counter, 'no such column'])
  expect(await start(['status'], env).ended).toMatchObject({ code: 1, stdout: expect.stringContaining('no such column') })
  expect(await start(['status', '--json'], env).ended).toMatchObject({ code: 1 })
})

test('the database from PG* variables, and one that is not there', async () => {
  const url = new URL(db.connectionString)
  const env = { PGHOST: url.hostname, PGPORT: url.port, PGUSER: url.username, PGPASSWORD: decodeURIComponent(url.password), PGDATABASE: url.pathname.slice(1) }
  expect(await start(['counter', 'list'], env).ended).toMatchObject(succeeded)
  expect(await start(['status'], { ...env, PGDATABASE: 'nowhere' }).ended).toMatchObject({ code: 1, stderr: expect.stringContaining('"nowhere"') })
  // Port 9 is "discard", which nobody runs. localhost may mean two addresses, and so two errors at once.
  for (const host of ['127.0.0.1', 'localhost']) {
    expect(await start(['status'], { DATABASE_URL: `postgres://u@${host}:9/x` }).ended).toMatchObject({ code: 1, stderr: expect.stringMatching(/ECONNREFUSED/) })
  }
})

describe('worker', () => {
  test('applies, and ends with code 0 on SIGTERM and on SIGINT', async () => {
    const blog = await createBlog(db, tally)
    const workers = [start(['worker']), start(['worker', '--poll-interval', '5', '--concurrency', '1'])]
    for (const worker of workers) await worker.said('worker started')
    await like(db.pool, blog, 1, 2)
    await waitFor(async () => (await stored(db.pool, blog))[1] === 2, { what: 'the count' })
    workers[0]?.child.kill('SIGTERM')
    expect(await workers[0]?.ended).toMatchObject({ ...succeeded, stdout: expect.stringContaining('worker stopped') })
    await like(db.pool, blog, 1)
    await waitFor(async () => (await stored(db.pool, blog))[1] === 3, { what: 'the count' })
    workers[1]?.child.kill('SIGINT')
    const last = await workers[1]?.ended
    expect(last).toMatchObject(succeeded)
    for (const line of last?.stdout.trim().split('\n') ?? []) expect(JSON.parse(line)).toMatchObject({ level: expect.any(Number), msg: expect.any(String) })
  })

  test('ends with code 1 where pgtally is not installed', async () => {
    expect(await start(['worker', '--schema', 'nowhere']).ended).toMatchObject({ code: 1, stderr: expect.stringContaining('pgtally install') })
  })

  test('survives a restart of the server, and says so', async (context) => {
    await using server = await dedicatedServer(context)
    await using own = await createTestDatabase(server.connectionString)
    const blog = await createBlog(own, await installed(own))
    const worker = start(['worker'], { DATABASE_URL: own.connectionString })
    await worker.said('worker started')
    await server.crash()
    await worker.said('no connection to the database')
    await server.restart()
    await worker.said('connected to the database again')
    await like(own.pool, blog, 1)
    await waitFor(async () => (await stored(own.pool, blog))[1] === 1, { what: 'the count' })
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject(succeeded)
  })
})
