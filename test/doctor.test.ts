import { readFile } from 'node:fs/promises'

import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'

import { createTally, type Tally } from '../src/index.ts'
import type { Check } from '../src/install/doctor/check.ts'
import { judgeServer } from '../src/install/doctor/checks/server-version.ts'
import { checks } from '../src/install/doctor/checks.ts'
import { examine, findingLevels } from '../src/install/doctor/doctor.ts'
import { readFacts } from '../src/install/doctor/facts.ts'
import { defaultLimits } from '../src/install/doctor/limits.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { column, createBlog, installed, like } from './support/fixtures.ts'
import { createPartitioned, cure, diagnose, find, findSoon, follow, ofServer, pgtally, troubles } from './support/patient.ts'
import { createRole, dropRoles, type TestRole } from './support/roles.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
})

const roles: TestRole[] = []
afterAll(async () => {
  await dropRoles(db, roles)
  await db.drop()
})

describe('a healthy database', () => {
  test('right after install, with a counter, and under load: no error and no warning', async () => {
    await using own = await createTestDatabase()
    const ownTally = await installed(own)
    expect(troubles(await ownTally.doctor())).toEqual([])
    const blog = await createBlog(own, ownTally, { countColumn: 'like_count int not null default 0' })
    await ownTally.createCounter('views', { keyType: 'text' })
    await own.pool.query(`select pgtally.register_consumer($1, 'notifier')`, [blog.counter])
    expect(troubles(await ownTally.doctor())).toEqual([])
    const worker = ownTally.worker()
    const load = new AbortController()
    const writers = [1, 2].map(async () => {
      while (!load.signal.aborted) await like(own.pool, blog, 1)
    })
    for (let look = 0; look < 5; look++) expect(troubles(await ownTally.doctor())).toEqual([])
    load.abort()
    await Promise.all(writers)
    await worker.stop()
    const { findings, fine, notChecked } = await ownTally.doctor()
    expect(findings).toContainEqual(expect.objectContaining({ code: 'ROLE', level: 'info', problem: expect.stringMatching(/run a worker; read counts/) }))
    expect(fine).toContain('triggers of sources and partitions')
    expect(notChecked).toEqual([])
  })

  test('no check takes a lock that a writer would wait for', async () => {
    await createBlog(db, tally)
    await createPartitioned(db, tally, 'locked')
    const client = await db.connect()
    const facts = await readFacts(client, 'pgtally')
    const context = { ...facts, schema: 'pgtally', limits: defaultLimits, command: () => '' }
    for (const { name, query } of checks) {
      if (query === undefined) continue
      await client.query(`begin; ${query(context)}`)
      const modes = await column<string>(client, `select distinct mode from pg_locks where pid = pg_backend_pid() and locktype = 'relation'`)
      expect({ name, modes }).toEqual({ name, modes: ['AccessShareLock'] })
      await client.query('rollback')
    }
  })

  test('a check could not write, nor take long', async () => {
    const look = (name: string, query: string): Check => ({ name, codes: {}, needsSchema: false, query: () => query, find: () => [] })
    const chosen = [look('a write', `select nextval('pgtally.batch_batch_id_seq')`), look('a long look', 'select pg_sleep(60)'), look('the rest', 'select 1')]
    const { findings, fine, notChecked } = await examine(db.pool, 'pgtally', { limits: { ...defaultLimits, statementTimeoutMs: 300 }, chosen })
    expect(notChecked).toMatchObject([{ check: 'a write', reason: expect.stringContaining('read-only transaction') }, { check: 'a long look' }])
    expect(findings.map(({ problem }) => problem)).toContainEqual(expect.stringContaining('It took more than 0.3 seconds, and was cancelled'))
    expect(fine).toEqual(['the rest'])
  })

  test('200 counters take as many queries as none', async () => {
    await using own = await createTestDatabase()
    const ownTally = await installed(own)
    const queries = vi.spyOn(pg.Client.prototype, 'query')
    try {
      await ownTally.doctor()
      const withNone = queries.mock.calls.length
      await own.pool.query(`create table likes (post_id bigint); select count(*) from generate_series(1, 200) i, pgtally.create_counter('c' || i, source => case when i <= 20 then 'likes'::regclass end,
        source_key => case when i <= 20 then 'post_id' end, key_type => case when i > 20 then 'bigint' end)`)
      queries.mockClear()
      const { findings, notChecked } = await ownTally.doctor()
      expect(queries.mock.calls.length).toBe(withNone)
      expect(findings.filter(({ code }) => code === 'BACKFILL_MISSING')).toHaveLength(20)
      expect(notChecked).toEqual([])
    } finally {
      queries.mockRestore()
    }
    const { code, output } = await pgtally(own.connectionString, 'doctor')
    expect(code).toBe(1)
    expect(output).toMatch(/… and 17 more of BACKFILL_MISSING, see --json: c12,/)
  })
})

describe('the installation', () => {
  test('missing: the remedy installs it', async () => {
    await using own = await createTestDatabase()
    const { notChecked, fine } = await diagnose(own)
    expect(notChecked).toContainEqual({ check: 'dead letters', reason: 'pgtally is not installed' })
    expect(fine).toContain('wraparound of transaction ids')
    await cure(own, { code: 'NOT_INSTALLED' })
    expect(troubles(await diagnose(own))).toEqual([])
  })

  test('in another schema: the remedies name it', async () => {
    await using own = await createTestDatabase()
    await cure(own, { code: 'NOT_INSTALLED', schema: 'tally_2' })
    const other = createTally({ pool: own.pool, schema: 'tally_2' })
    await own.pool.query('create table likes (post_id bigint); insert into likes values (1)')
    await other.createCounter('likes of "posts" & it\'s', { source: { table: 'likes', key: 'post_id' } }, { backfill: false })
    await cure(own, { code: 'BACKFILL_MISSING', schema: 'tally_2' })
    await own.pool.query('alter table likes disable trigger user')
    await cure(own, { code: 'TRIGGER_DISABLED', schema: 'tally_2' })
    expect(troubles(await other.doctor())).toEqual([])
    await own.pool.query('create schema taken')
    expect(await find(own, { code: 'SCHEMA_NOT_OWN', schema: 'taken' })).toMatchObject({ level: 'error' })
  })

  test('too old, too new: says so, and still checks what it can', async () => {
    await using own = await createTestDatabase()
    await installed(own)
    await own.pool.query('update pgtally.installation set schema_version = 0')
    expect(troubles(await diagnose(own))).toMatchObject([{ code: 'SCHEMA_TOO_OLD', remedy: [{}, { command: 'pgtally install' }] }])
    // As a release might have it of which nobody knows yet.
    await own.pool.query('update pgtally.installation set schema_version = 999; alter table pgtally.failed_event rename to failure; drop function pgtally.slot_status')
    const diagnosis = await diagnose(own)
    expect(troubles(diagnosis)).toMatchObject([{ code: 'SCHEMA_TOO_NEW' }])
    expect(diagnosis.notChecked.map(({ check }) => check)).toEqual(['emptying of slots', 'dead letters', "the server's clock"])
    expect(diagnosis.fine).toContain('progress of counters and consumers')
  })

  test('of which a part does not answer: the other checks go on, and nobody waits for long', async () => {
    await using own = await createTestDatabase()
    const ownTally = await installed(own)
    await ownTally.createCounter('views', { keyType: 'text' })
    await own.pool.query(`update pgtally.consumer set last_error = 'no such luck', last_error_at = now(); drop function pgtally.slot_status`)
    const session = await own.connect()
    await session.query('begin; lock table pgtally.failed_event in access exclusive mode')
    const diagnosis = await diagnose(own)
    expect(diagnosis.findings.filter((finding) => !ofServer(finding)).map(({ code }) => code)).toEqual(['COUNTER_FAILING', 'CHECK_FAILED', 'CHECK_FAILED', 'CHECK_FAILED', 'ROLE'])
    expect(diagnosis.notChecked).toMatchObject([{ check: 'emptying of slots' }, { check: 'dead letters', reason: expect.stringContaining('lock timeout') }, { check: "the server's clock" }])
  })
})

test('a server that is too old, at its end, or early', () => {
  const codes = (version: number, day: string) => judgeServer(version, 'as it says', new Date(day)).map(({ code }) => code)
  expect(codes(130_022, '2026-01-01')).toEqual(['SERVER_TOO_OLD'])
  expect(codes(140_019, '2026-11-12')).toEqual([])
  expect(codes(140_019, '2026-11-13')).toEqual(['SERVER_END_OF_LIFE'])
  expect(codes(140_003, '2026-01-01')).toEqual(['SERVER_MINOR_OLD'])
  expect(codes(180_001, '2026-01-01')).toEqual(['SERVER_MINOR_OLD'])
  expect(codes(180_004, '2026-01-01')).toEqual([])
  expect(codes(190_002, '2040-01-01')).toEqual([])
})

/** The same database as another role. */
function as(role: string): TestDatabase {
  const url = new URL(db.connectionString)
  url.username = role
  url.password = 'test'
  const pool = new pg.Pool({ connectionString: url.href, max: 4 })
  pool.on('error', () => {})
  const drop = () => pool.end()
  return { connectionString: url.href, pool, connect: () => db.connect(), drop, [Symbol.asyncDispose]: drop }
}

describe('roles', () => {
  test('that may see nothing: says what it cannot check, and the right that is needed', async () => {
    const { role } = await createRole(db, roles)
    await using own = as(role)
    const blog = await createBlog(db, tally, { countColumn: 'like_count int not null default 0' })
    const before = await diagnose(own)
    expect(before.fine).toContain('wraparound of transaction ids')
    expect(troubles(before).map(({ code }) => code)).toEqual(['SCHEMA_HIDDEN', 'NOT_CHECKED'])
    expect(before.findings).toContainEqual(expect.objectContaining({ code: 'SESSIONS_HIDDEN', level: 'info' }))
    for (const finding of before.findings) if (finding.code !== 'ROLE' && !ofServer(finding)) await follow(db, finding, /./)
    const after = await diagnose(own)
    expect(troubles(after)).toEqual([])
    expect(after.notChecked).toEqual([])
    expect(after.findings.filter((finding) => !ofServer(finding))).toEqual([expect.objectContaining({ code: 'ROLE', problem: expect.stringMatching(/may read counts/) })])

    await db.pool.query(`grant execute on all functions in schema pgtally to ${role}; grant insert, update, delete on all tables in schema pgtally to ${role}`)
    const { remedy } = await findSoon(own, { code: 'TARGET_NOT_WRITABLE', name: blog.counter })
    for (const one of remedy) if ('sql' in one) await db.pool.query(one.sql)
    expect(await find(own, { code: 'TARGET_NOT_WRITABLE', name: blog.counter })).toBeUndefined()
    expect((await find(own, { code: 'ROLE' }))?.problem).toMatch(/may run a worker; read counts; add events/)
  })

  test('with settings that would do harm', async () => {
    const { role } = await createRole(db, roles)
    await db.pool.query(`alter role ${role} set statement_timeout = '1s'; alter role ${role} set idle_in_transaction_session_timeout = '500ms'; alter role ${role} set default_transaction_read_only = on;
      alter role ${role} set default_transaction_isolation = 'serializable'; grant usage on schema pgtally to ${role}`)
    const codes = async () => {
      // Settings count from the next session on.
      await using own = as(role)
      const { findings } = await diagnose(own)
      for (const { code, remedy } of findings) {
        if (code === 'TIMEOUT_SHORT' || code === 'READ_ONLY_DEFAULT') for (const one of remedy) if ('sql' in one) await db.pool.query(one.sql)
      }
      return findings.flatMap(({ code }) => (/TIMEOUT|DEFAULT/.test(code) ? [code] : []))
    }
    expect(await codes()).toEqual(['READ_ONLY_DEFAULT', 'TIMEOUT_SHORT', 'TIMEOUT_SHORT', 'ISOLATION_DEFAULT'])
    expect(await codes()).toEqual(['ISOLATION_DEFAULT'])
  })
})

describe('the command', () => {
  test('says it in 80 columns, or as JSON; exit code 1 on errors only', async () => {
    await using own = await createTestDatabase()
    const ownTally = await installed(own)
    const blog = await createBlog(own, ownTally)
    const before = (await ownTally.doctor()).findings.filter(ofServer).length
    const warnings = (more: number) => ['no warnings', '1 warning', '2 warnings'][before + more]
    expect(await pgtally(own.connectionString, 'doctor')).toMatchObject({ code: 0, output: expect.stringMatching(new RegExp(`^No errors, ${warnings(0)}\\.[^]*INFO[^]*Fine: `)) })
    await own.pool.query(`create index on ${blog.posts} (like_count)`)
    expect(await pgtally(own.connectionString, 'doctor')).toMatchObject({ code: 0, output: expect.stringMatching(new RegExp(`^No errors, ${warnings(1)}\\.`)) })
    await own.pool.query(`alter table ${blog.likes} disable trigger user`)
    const { code, output } = await pgtally(own.connectionString, 'doctor')
    expect({ code, output }).toMatchObject({ code: 1, output: expect.stringMatching(new RegExp(`^1 error, ${warnings(1)}\\.[^]*ERROR {2}table[^]*TRIGGER_DISABLED[^]*WARNING {2}counter[^]*TARGET_COLUMN_INDEXED[^]*INFO[^]*Fine: `)) })
    expect(output.split('\n').filter((line) => line.length > 80 && !line.startsWith('      '))).toEqual([])
    const json = await pgtally(own.connectionString, 'doctor', '--json')
    expect(json.code).toBe(1)
    expect(JSON.parse(json.output)).toEqual(JSON.parse(JSON.stringify(await ownTally.doctor())))
    expect(await pgtally('postgres://nobody@127.0.0.1:1/none', 'doctor')).toMatchObject({ code: 1, output: expect.stringMatching(/^error: .*ECONNREFUSED/) })
  })

  test('docs/doctor.md has the codes and levels that there are', async () => {
    const text = await readFile(new URL('../docs/doctor.md', import.meta.url), 'utf8')
    const documented = Object.fromEntries([...text.matchAll(/^\| `([A-Z_]+)` \| (error|warning|info) \|/gm)].map(([, code, level]) => [code, level]))
    expect(documented).toEqual(findingLevels)
  })
})
