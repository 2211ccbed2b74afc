import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { afterEach, beforeAll, describe, expect, test, vi } from 'vitest'

import { withProgress } from '../src/cli/measurement.ts'
import type { Tally } from '../src/index.ts'
import { commandLine, here } from './support/command-line.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { createBlog, installed, like, outcome, stored, value } from './support/fixtures.ts'
import { dedicatedServer } from './support/server.ts'

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
  const child = spawn(process.execPath, [commandLine, ...args], { env: { ...Object.fromEntries(inherited), ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
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
    const commands = [['install'], ['uninstall'], ['counter'], ['counter', 'create'], ['counter', 'list'], ['counter', 'reset'], ['counter', 'drop'], ['worker'], ['consumer'], ['consumer', 'list'], ['consumer', 'register'], ['consumer', 'unregister'], ['consumer', 'pause'], ['consumer', 'resume'], ['consumer', 'seek'], ['consumer', 'skip'], ['consumer', 'dead-letters'], ['consumer', 'replay'], ['consumer', 'purge'], ['drain'], ['status'], ['doctor'], ['audit'], ['reconcile'], ['rebase'], ['series'], ['top'], ['trending']]
    for (const command of commands) {
      expect(await here(db.connectionString, ...command, '--help')).toEqual({ ...succeeded, stdout: expect.stringContaining(`Usage: ${['pgtally', ...command].join(' ')} `) })
    }
    expect(await run('--help')).toEqual({ ...succeeded, stdout: expect.stringContaining('Usage: pgtally ') })
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
      ...['', 'web', '80.5', '0x50', '1e3', '65536', '-1'].map((port): [string[], RegExp] => [['worker', `--http=${port}`], /--http.*from 0 to 65535/]),
      [['worker', '--http-host', '::1'], /--http PORT/],
      [['drain', '--timeout', '-1'], /--timeout/],
      [['audit', '--key', '1'], /--key.*one counter/],
      [['audit', '--against', 'like_count'], /--against.*one counter/],
      [['audit', 'one', 'two', '--key', '1'], /--key.*one counter/],
      [['audit', 'one', '--key'], /--key.*argument missing/],
      [['audit', 'one', '--key', '1', '--sample', '1'], /not both/],
      [['audit', '--sample', '0'], /--sample.*1 or more/],
      [['reconcile'], /missing required argument 'counter'/],
      [['reconcile', 'one', '--keys', '1'], /unknown option '--keys'.*--key/s],
      [['rebase', 'one'], /too many arguments/],
      [['counter', 'reset'], /missing required argument 'name'/],
      [['counter', 'reset', 'one'], /either --key or --all/],
      [['counter', 'reset', 'one', '--key', '1', '--all'], /either --key or --all/],
      ...['1x', '10', '-1h'].map((retain): [string[], RegExp] => [['counter', 'create', 'x', `--retain=${retain}`], /--retain.*with its unit/]),
      [['counter', 'create', 'x', '--retain', '1h', '--rotation-period', '60s'], /"x".*kept for 01:00:00.*00:01:00/],
      [['counter', 'create', 'x', '--rotation-period', '60'], /--rotation-period.*unit/],
      [['counter', 'create', 'x', '--source-time', 'at'], /--source-time.*--source/],
      ...['1 hour', '1 hour:', ':30 days', '1 hour:30 days@'].map((bucket): [string[], RegExp] => [['counter', 'create', 'x', '--bucket', bucket], /--bucket.*such as "1 hour:30 days"/]),
      [['counter', 'create', 'x', '--half-life', '6'], /--half-life.*unit/],
      [['counter', 'create', 'x', '--half-life', '6 moons'], /moons.*'1 hour'/],
      [['top'], /missing required argument 'counter'/],
      [['top', 'one', '--limit', '0'], /--limit.*1 or more/],
      [['top', 'one', '--window', '60'], /--window.*unit/],
      [['top', 'one', '--window', '6 moons'], /moons.*'1 hour'/],
      ...['category', '=7'].map((where): [string[], RegExp] => [['top', 'one', '--where', where], /--where.*such as category_id=7/]),
      [['trending', 'one', '--half-life', '6h', '--baseline', '1h'], /either --half-life or --baseline/],
      [['trending', 'one', '--windows', '3'], /--windows.*--baseline/],
      [['trending', 'one', '--min-count', '3'], /--min-count.*--baseline/],
      [['series', 'one', '--width', '1h'], /missing required argument 'key'/],
      [['series', 'one', '1'], /--width.*not specified/],
      ...['today', '5', '2026-13-01'].map((from): [string[], RegExp] => [['series', 'one', '1', '--width', '1h', '--from', from], /--from.*such as 2026-01-31/]),
    ]
    for (const [args, says] of wrong) {
      expect({ args, ...(await here(db.connectionString, ...args)) }).toMatchObject({ args, code: 2, stdout: '', stderr: expect.stringMatching(says) })
    }
    expect(await run('uninstall')).toMatchObject({ code: 2, stdout: '', stderr: expect.stringContaining('--yes') })
    expect(await value(db.pool, `select to_regnamespace('pgtally') is not null and not exists (select from pgtally.counter)`)).toBe(true)
  })
})

test('from install to uninstall', async () => {
  await using own = await createTestDatabase()
  const cli = (...args: string[]) => here('postgres://nowhere.invalid', ...args, '--database-url', own.connectionString)
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

describe('audit and reconcile', () => {
  /** A counter with wrong counts: 3 too many for post 1, 2 too few for post 2, and as many more of these as wanted. */
  async function drifting({ more = 0 } = {}) {
    const own = await createTestDatabase()
    const blog = await createBlog(own, await installed(own), { posts: 3 + more })
    await like(own.pool, blog, 1, 2)
    await like(own.pool, blog, 2, 5)
    await own.pool.query(`update ${blog.posts} set like_count = case id when 1 then 3 when 2 then -2 when 3 then 0 else 1234 end`)
    const drifts = [
      { key: '1', source: 2, stored: 3, carried: 0, pending: 2, drift: -3 },
      { key: '2', source: 5, stored: -2, carried: 0, pending: 5, drift: 2 },
    ]
    const cli = (...args: string[]) => here(own.connectionString, ...args)
    return { own, blog, drifts, cli, [Symbol.asyncDispose]: own.drop }
  }

  test('an audit prints each key that drifts, and exits with 1; without drift with 0', async () => {
    await using setting = await drifting()
    const { own, blog, drifts, cli } = setting
    const name = blog.counter
    const [all, named] = [await cli('audit'), await cli('audit', name)]
    const [json, sample] = [await cli('audit', '--json'), await cli('audit', '--sample', '1000', '--json')]
    const one = await cli('audit', name, '--key', '1', '--json')
    const several = await cli('audit', name, '--key', '1', '--key', '3', '--key', '2', '--key', '404', '--json')
    const against = await cli('audit', name, '--against', 'id', '--json')
    expect((await cli('audit', name, '--against', 'id', '--key', '1')).stdout).toMatch(new RegExp(`^${name}: 1 key checked, 1 drifting:\n *key +id +stored +carried +pending +drift *\n *1 +1 +3 +0 +2 +-4 *\n$`))
    const lines = [`${name}: 3 keys checked, 2 drifting:`, /^ *key +source +stored +carried +pending +drift *$/, /^ *1 +2 +3 +0 +2 +-3 *$/, /^ *2 +5 +-2 +0 +5 +\+2 *$/]
    for (const result of [all, named]) {
      expect(result).toMatchObject({ code: 1, stderr: '' })
      const printed = result.stdout.trimEnd().split('\n')
      expect(printed).toHaveLength(lines.length)
      for (const [index, line] of lines.entries()) expect(printed[index]).toMatch(line)
    }
    for (const result of [json, sample]) {
      expect(result).toMatchObject({ code: 1, stderr: '' })
      expect(JSON.parse(result.stdout)).toEqual([{ counter: name, checkedKeys: 3, driftingKeys: 2, drifts }])
    }
    expect(JSON.parse((await cli('audit', name, '--sample', '2', '--json')).stdout)).toMatchObject([{ checkedKeys: 2 }])
    expect(await start(['audit', '--json'], { DATABASE_URL: own.connectionString }).ended).toEqual(json)
    expect(one).toMatchObject({ code: 1, stderr: '' })
    expect(JSON.parse(one.stdout)).toEqual([{ counter: name, checkedKeys: 1, driftingKeys: 1, drifts: drifts.slice(0, 1) }])
    expect(await cli('audit', name, '--key', '3')).toEqual({ ...succeeded, stdout: `${name}: 1 key checked, no drift.\n` })
    expect(JSON.parse(several.stdout)).toEqual([{ counter: name, checkedKeys: 3, driftingKeys: 2, drifts }])
    expect(JSON.parse(against.stdout)).toMatchObject([{ driftingKeys: 3, drifts: [{ key: '1', source: 1, drift: -4 }, { key: '2', source: 2, drift: -1 }, { key: '3', source: 3, drift: 3 }] }])

    await own.pool.query(`update ${blog.posts} set like_count = 0`)
    expect(await cli('audit')).toEqual({ ...succeeded, stdout: `${name}: 3 keys checked, no drift.\n` })
    expect(await cli('audit', '--json')).toMatchObject({ ...succeeded, stdout: expect.stringContaining('"drifts": []') })
  })

  test('an audit of several counters is of those that are named, else of all that have a source', async () => {
    await using own = await createTestDatabase()
    const ownTally = await installed(own)
    const cli = (...args: string[]) => here(own.connectionString, 'audit', ...args)
    expect(await cli()).toEqual({ ...succeeded, stdout: 'There is no counter with a source to be held against.\n' })
    await ownTally.createCounter('views', { keyType: 'text' })
    expect(await cli()).toEqual({ ...succeeded, stdout: 'There is no counter with a source to be held against.\n' })
    expect(await cli('--json')).toEqual({ ...succeeded, stdout: '[]\n' })
    expect(await cli('views')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(/"views" adds up events.*reset/) })
    expect(await cli('nobody')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('no counter "nobody"') })
    const [first, second] = [await createBlog(own, ownTally, { posts: 2 }), await createBlog(own, ownTally, { posts: 3 })]
    await own.pool.query(`update ${second.posts} set like_count = 1 where id = 1`)
    expect(await cli()).toMatchObject({ code: 1, stdout: expect.stringMatching(new RegExp(`^${first.counter}: 2 keys checked, no drift\\.\n${second.counter}: 3 keys checked, 1 drifting:\n`)) })
    expect(JSON.parse((await cli(second.counter, first.counter, '--json')).stdout)).toMatchObject([{ counter: second.counter, driftingKeys: 1 }, { counter: first.counter, driftingKeys: 0 }])
    expect(await cli(first.counter)).toMatchObject(succeeded)
    expect(await cli(first.counter, '--against', 'title')).toMatchObject({ code: 2, stdout: '', stderr: expect.stringContaining('"title"') })
    expect(await cli(first.counter, '--key', 'x')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('"x"') })
  })

  test('reconcile corrects what it prints, a dry run only prints it', async () => {
    await using setting = await drifting({ more: 30 })
    const { own, blog, drifts, cli } = setting
    const name = blog.counter
    const dryRun = await cli('reconcile', name, '--dry-run')
    expect(dryRun).toMatchObject({ stderr: '', stdout: expect.stringMatching(new RegExp(`^${name}: 33 keys checked, 32 to be corrected:\n`)) })
    // Twenty of them are printed.
    expect(dryRun.stdout.trimEnd().split('\n')).toHaveLength(2 + 20 + 1)
    expect(dryRun.stdout).toMatch(/ 1,234 .* -1,234 *\n… and 12 more\.\n$/s)
    const keys = ['--key', '1', '--key', '4', '--key', '3']
    expect(JSON.parse((await cli('reconcile', name, ...keys, '--dry-run', '--json')).stdout)).toMatchObject({ counter: name, checkedKeys: 3, driftingKeys: 2 })
    const some = await cli('reconcile', name, ...keys, '--json')
    expect(some).toMatchObject(succeeded)
    expect(JSON.parse(some.stdout)).toEqual({ counter: name, checkedKeys: 3, driftingKeys: 2, drifts: [drifts[0], { key: '4', source: 0, stored: 1234, carried: 0, pending: 0, drift: -1234 }] })
    const all = await cli('reconcile', name, '--restart')
    expect(all).toMatchObject({ ...succeeded, stdout: expect.stringMatching(new RegExp(`^${name}: 33 keys checked, 30 corrected:\n`)) })
    expect(await cli('reconcile', name)).toEqual({ ...succeeded, stdout: `${name}: 33 keys checked, no drift.\n` })
    expect(await cli('drain')).toMatchObject(succeeded)
    expect(await stored(own.pool, blog)).toEqual({ 1: 2, 2: 5 })
    expect(await cli('reconcile', 'nobody')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('"nobody"') })
  })

  test('how far they are is told on standard error only', async () => {
    const written = { stdout: '', stderr: '' }
    const capture = (name: 'stdout' | 'stderr') => vi.spyOn(process[name], 'write').mockImplementation((text) => ((written[name] += String(text)), true))
    const clock = vi.spyOn(performance, 'now')
    const spies = [capture('stdout'), capture('stderr'), clock]
    const { isTTY } = process.stderr
    try {
      for (const terminal of [false, true]) {
        Object.assign(written, { stdout: '', stderr: '' })
        process.stderr.isTTY = terminal
        let now = 0
        clock.mockImplementation(() => now)
        const result = await withProgress(async (onProgress) => {
          onProgress({ counter: 'likes', checkedKeys: 1000, driftingKeys: 0, estimatedKeys: 2_000_000 })
          now += 11_000
          onProgress({ counter: 'likes', checkedKeys: 1_500_000, driftingKeys: 7, estimatedKeys: 2_000_000 })
          now += 11_000
          // The statistics were old.
          onProgress({ counter: 'likes', checkedKeys: 2_500_000, driftingKeys: 7, estimatedKeys: 2_000_000 })
          return 'done'
        })
        expect(result).toBe('done')
        expect(written.stdout).toBe('')
        expect(written.stderr).toContain('likes: 1,500,000 of about 2,000,000 keys, 7 drifting\n')
        expect(written.stderr).toContain('likes: 2,500,000 keys, 7 drifting\n')
        // A line now and then, where it cannot be shown in place.
        expect(written.stderr.includes('1,000 of')).toBe(terminal)
      }
    } finally {
      process.stderr.isTTY = isTTY
      for (const spy of spies) spy.mockRestore()
    }
  })
})

test('a counter created without its backfill, which status reports until it is done', async () => {
  await using own = await createTestDatabase()
  const cli = (...args: string[]) => here(own.connectionString, ...args)
  await installed(own)
  await own.pool.query('create table posts (id bigint primary key, n int not null default 0); create table likes (post_id bigint); insert into posts values (1), (2); insert into likes values (1)')
  const create = ['counter', 'create', 'likes', '--source', 'likes', '--source-key', 'post_id', '--target', 'posts', '--target-key', 'id', '--target-column', 'n', '--retain', '1h']
  expect(await cli(...create, '--no-backfill')).toEqual({ ...succeeded, stdout: 'Created the counter "likes".\nRows that were there before are not counted yet: pgtally reconcile likes\n' })
  const status = await cli('status')
  expect(status).toMatchObject({ code: 1, stderr: '', stdout: expect.stringMatching(/\nlikes: The rows that were there before the counter are not counted yet\. Run: pgtally reconcile likes\n$/) })
  const json = await cli('status', '--json')
  expect(json).toMatchObject({ code: 1, stderr: '' })
  expect(JSON.parse(json.stdout)).toMatchObject({ counters: [{ name: 'likes', problems: [expect.stringContaining('pgtally reconcile likes')], lastError: null }], queues: [{ rotationPeriodSeconds: 3600 }] })
  expect(await cli('audit')).toMatchObject({ code: 1 })
  expect(await cli('reconcile', 'likes')).toMatchObject({ ...succeeded, stdout: expect.stringContaining('1 corrected') })
  expect(await cli('status')).toMatchObject(succeeded)
  expect(JSON.parse((await cli('status', '--json')).stdout)).toMatchObject({ counters: [{ problems: [], carriedKeys: 1 }] })
  expect(await cli('drain')).toMatchObject(succeeded)
  expect(await value(own.pool, 'select n from posts where id = 1')).toBe(1)
  // The same again goes on with what was left undone.
  expect(await cli(...create)).toEqual({ ...succeeded, stdout: 'The counter "likes" exists already, with the same definition.\n' })
  expect(await cli('counter', 'create', 'views', '--key-type', 'text', '--no-backfill', '--retain', '90s')).toEqual({ ...succeeded, stdout: 'Created the counter "views".\n' })
  const queues = JSON.parse((await cli('status', '--json')).stdout) as { queues: { name: string; rotationPeriodSeconds: number }[] }
  expect(queues.queues.find(({ name }) => name === 'views')).toMatchObject({ rotationPeriodSeconds: 300 })
  expect(await value(own.pool, `select retain::text from pgtally.queue where name = 'views'`)).toBe('00:01:30')
})

test('counter reset', async () => {
  await tally.createCounter('reset views', { keyType: 'text' })
  const views = tally.counter<string>('reset views')
  for (const key of ['/a', '/b', '/c', '/d']) await views.add(db.pool, key, 3)
  const counts = async () => [...(await views.getMany(['/a', '/b', '/c', '/d'], { fresh: true })).values()].map(({ count }) => count)
  expect(await here(db.connectionString, 'counter', 'reset', 'reset views', '--key', '/a')).toEqual({ ...succeeded, stdout: 'Reset one count of "reset views".\n' })
  expect(await counts()).toEqual([0, 3, 3, 3])
  expect(await here(db.connectionString, 'counter', 'reset', 'reset views', '--key', '/b', '--key', '/c')).toEqual({ ...succeeded, stdout: 'Reset 2 counts of "reset views".\n' })
  expect(await counts()).toEqual([0, 0, 0, 3])
  expect(await here(db.connectionString, 'counter', 'reset', 'reset views', '--all')).toEqual({ ...succeeded, stdout: 'Reset all counts of "reset views".\n' })
  expect(await counts()).toEqual([0, 0, 0, 0])
  const blog = await createBlog(db, tally)
  expect(await here(db.connectionString, 'counter', 'reset', blog.counter, '--all')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(/counts the rows of.*reconcile/) })
  expect(await here(db.connectionString, 'counter', 'reset', 'nobody', '--key', '/a')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('"nobody"') })
  await tally.dropCounter('reset views')
})

test('rebase, where there is something to do and where there is not', async () => {
  await using own = await createTestDatabase()
  const cli = (...args: string[]) => here(own.connectionString, ...args)
  expect(await cli('rebase')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('pgtally install') })
  const ownTally = await installed(own)
  expect(await cli('rebase')).toEqual({ ...succeeded, stdout: 'All positions are those of this cluster already.\n' })
  const blog = await createBlog(own, ownTally)
  expect(await cli('rebase', '--json')).toEqual({ ...succeeded, stdout: '[]\n' })
  await like(own.pool, blog, 1)
  await like(own.pool, blog, 1)
  const elsewhere = () => own.pool.query('update pgtally.consumer set system_identifier = 1')
  await elsewhere()
  expect(await cli('status')).toMatchObject({ code: 1, stderr: '', stdout: expect.stringMatching(new RegExp(`\n${blog.counter}: .*cluster.*Run: pgtally rebase\n`)) })
  expect(await cli('audit')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('Run: pgtally rebase') })
  expect(await cli('rebase')).toEqual({ ...succeeded, stdout: `${blog.counter}: goes on here, with 2 events pending.\n` })
  await elsewhere()
  expect(JSON.parse((await cli('rebase', '--json')).stdout)).toEqual([{ queue: blog.counter, pendingEvents: 2 }])
  expect(await cli('drain')).toMatchObject(succeeded)
  expect(await stored(own.pool, blog)).toEqual({ 1: 2 })
  expect(await cli('audit')).toMatchObject(succeeded)
  expect(await cli('status')).toMatchObject(succeeded)
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

test('consumers and their dead letters', async () => {
  await using own = await createTestDatabase()
  const ownTally = await installed(own)
  await ownTally.createQueue('events', { retainMs: 60_000 })
  const cli = (...args: string[]) => here(own.connectionString, 'consumer', ...args)
  const says = (stdout: string) => ({ ...succeeded, stdout: `${stdout}\n` })
  const fail = `select pgtally.fail_event('events', 'c', '1.0.0.' || n, now(), n::text, 1, '{"a": 1}', 3, 'no reason') from generate_series(1, 3) n`
  expect(await cli('list')).toEqual(says('There are no consumers.'))
  expect(await cli('register', 'events', 'c')).toEqual(says('Registered the consumer "c".'))
  expect(await cli('register', 'events', 'c')).toEqual(says('The consumer "c" is there already.'))
  await own.pool.query(`select pgtally.insert_event('events', '1'), pgtally.insert_event('events', '2')`)
  expect(await cli('skip', 'events', 'c')).toEqual(says('"c" has passed over 2 events.'))
  expect(await cli('seek', 'events', 'c', '--ago', '1h')).toEqual(says('"c" has 2 events before it.'))
  expect(await cli('pause', 'events', 'c')).toEqual(says('Paused "c".'))
  expect(await cli('pause', 'events', 'c')).toEqual(says('"c" was paused already.'))
  expect(await cli('list')).toMatchObject({ ...succeeded, stdout: expect.stringMatching(/\bevents +c +2 .* paused/) })
  expect(await cli('resume', 'events', 'c')).toEqual(says('Resumed "c".'))
  expect(await cli('resume', 'events', 'c')).toEqual(says('"c" was not paused.'))
  expect(await cli('dead-letters', 'events', 'c')).toEqual(says('There are no dead letters.'))
  await own.pool.query(fail)
  expect(await cli('dead-letters', 'events', 'c')).toMatchObject({ ...succeeded, stdout: expect.stringMatching(/1 +1 +1 +\{"a":1\} +3 .* no reason/) })
  expect(JSON.parse((await cli('dead-letters', 'events', 'c', '--json', '--limit', '1')).stdout)).toMatchObject([{ number: '1', key: '1', data: { a: 1 }, attempts: 3, reason: 'no reason' }])
  expect(await cli('replay', 'events', 'c', '--number', '1')).toEqual(says('Given again: 1 dead letter.'))
  expect(await cli('purge', 'events', 'c')).toEqual(says('Removed: 2 dead letters.'))
  expect(JSON.parse((await cli('list', '--json')).stdout)).toMatchObject([{ queue: 'events', name: 'c', pendingEvents: 2, retryingEvents: 1, deadLetters: 0 }])
  await own.pool.query(`select pgtally.record_consumer_error('events', 'c', 'the mail server is away')`)
  expect(await here(own.connectionString, 'status')).toMatchObject({ code: 1, stdout: expect.stringMatching(/\bevents +c +2 .* failing[^]*\nc cannot go on since .*: the mail server is away\n/) })
  expect(await cli('unregister', 'events', 'c')).toEqual(says('Unregistered the consumer "c".'))
  expect(await cli('pause', 'events', 'c')).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('Queue "events" has no consumer "c"') })
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

  test('runs the consumers of a module; one that cannot go on does not stop the others', async () => {
    await tally.createQueue('events')
    await tally.queue('events').register('teller')
    const worker = start(['worker', '--module', fileURLToPath(new URL('support/consumers-module.ts', import.meta.url))])
    await worker.said('There is no queue \\"nowhere\\"')
    await tally.queue('events').insert(db.pool, { key: 77 })
    await worker.said('"key":"77"')
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1)
    await worker.said(`"counter":"${blog.counter}","changes":[{"key":"1","value":1}]`)
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject({ code: 1, stderr: '', stdout: expect.stringContaining('consumer stopped') })
    expect(await start(['worker', '--module', commandLine.replace('main.ts', 'command.ts')]).ended).toMatchObject({ code: 2, stderr: expect.stringContaining('export default [defineConsumer') })
    expect(await start(['worker', '--module', './nothing.ts']).ended).toMatchObject({ code: 1, stderr: expect.stringContaining('nothing.ts') })
  })

  test('serves metrics and health, with a token, until it ends', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1)
    const worker = start(['worker', '--http', '0'], { DATABASE_URL: db.connectionString, PGTALLY_HTTP_TOKEN: 's3cret' })
    await worker.said('HTTP server listens')
    const url = /"url":"(http:\/\/127\.0\.0\.1:\d+)"/.exec(worker.output.stdout)?.[1] ?? ''
    const ask = (path: string, token?: string) => fetch(`${url}${path}`, token === undefined ? {} : { headers: { authorization: `Bearer ${token}` } })
    await waitFor(async () => (await ask('/readyz')).status === 200, { what: 'readiness' })
    expect((await ask('/healthz')).status).toBe(200)
    expect((await ask('/metrics')).status).toBe(401)
    expect((await ask('/metrics', 'secret')).status).toBe(401)
    await waitFor(async () => (await (await ask('/metrics', 's3cret')).text()).includes(`pgtally_worker_applied_events_total{counter="${blog.counter}"} 1\n`), { what: 'the event' })
    const taken = await start(['worker', '--http', new URL(url).port, '--log-level', 'silent']).ended
    expect(taken).toEqual({ code: 1, stdout: '', stderr: expect.stringMatching(/^error: .*127\.0\.0\.1 port \d+: the port is taken.*\n$/) })
    expect(await start(['worker', '--http', '0', '--http-host', 'nowhere.invalid', '--log-level', 'silent']).ended).toEqual({ code: 2, stdout: '', stderr: expect.stringMatching(/^error: .*nowhere\.invalid.*\n$/) })
    expect(await start(['worker', '--http', '0', '--http-token', 'two words', '--log-level', 'silent']).ended).toEqual({ code: 2, stdout: '', stderr: expect.stringMatching(/^error: .*token.*\n$/) })
    worker.child.kill('SIGTERM')
    expect(await worker.ended).toMatchObject({ ...succeeded, stdout: expect.not.stringContaining('s3cret') })
    expect(await outcome(ask('/healthz'))).toBeInstanceOf(Error)
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
