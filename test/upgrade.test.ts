import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { afterEach, describe, expect, test } from 'vitest'

import { asTransaction, installScript, knownVersion, readSqlFiles } from '../src/install/script.ts'
import { createTally } from '../src/index.ts'
import { currentSnapshot, describeInstallation, snapshotSeparator } from './schema/installation.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, column, installed, value, violations } from './support/fixtures.ts'
import { findPostgresTools, toolsMissing } from './support/postgres-tools.ts'
import { dumpSchema } from './support/schema-dump.ts'

const execFileAsync = promisify(execFile)
const databases: TestDatabase[] = []

afterEach(async () => {
  for (const db of databases.splice(0)) await db.drop()
})

async function fresh(): Promise<TestDatabase> {
  const db = await createTestDatabase()
  databases.push(db)
  return db
}

const schemaFolder = new URL('schema/', import.meta.url)
const read = (name: string) => readFile(new URL(name, schemaFolder), 'utf8')

async function pgtally(...args: string[]): Promise<string> {
  const { stdout } = await execFileAsync(process.execPath, [fileURLToPath(new URL('../src/cli/main.ts', import.meta.url)), ...args], { maxBuffer: 2 ** 24 })
  return stdout
}

test('what is installed is what the kept dump says; if the change is meant: npm run schema:dump', async () => {
  const db = await fresh()
  expect(await describeInstallation(db.pool)).toBe(await read('schema.txt'))
})

describe('the SQL of the command line', () => {
  test('is what install() runs: printed without a database, and by --dry-run as long as there is something to do', async () => {
    const db = await fresh()
    const printed = await pgtally('sql')
    expect(await pgtally('install', '--dry-run', '--database-url', db.connectionString)).toBe(printed)
    expect(await value(db.pool, `select to_regnamespace('pgtally')`)).toBeNull()
    await db.pool.query(printed)
    expect(await pgtally('install', '--dry-run', '--database-url', db.connectionString)).toBe('')
    const { from, to } = await createTally({ pool: db.pool }).install()
    expect(from).toBe(to)
    const other = await fresh()
    await installed(other)
    expect(await dumpSchema(db.pool, { bodies: true })).toBe(await dumpSchema(other.pool, { bodies: true }))
    await expect(db.pool.query(printed)).rejects.toMatchObject({ code: '42P06' })
  })

  test('runs in a transaction of a tool, in another schema, and leaves the session as it was', async () => {
    const db = await fresh()
    const printed = await pgtally('sql', '--no-transaction', '--schema', 'counting')
    expect(printed).toBe(installScript('counting', await readSqlFiles('counting'), 0))
    const client = await db.connect()
    await client.query('begin; set local search_path = public')
    await client.query(printed)
    await client.query('create table migrations (name text); commit')
    expect(await value(client, `select to_regclass('public.migrations')::text`)).toBe('migrations')
    expect(await createTally({ pool: db.pool, schema: 'counting' }).install()).toMatchObject({ from: await knownVersion() })
  })

  test('does nothing outside a transaction, and no upgrade of another version', async () => {
    const db = await fresh()
    const client = await db.connect()
    const files = await readSqlFiles('pgtally')
    const upgrade = installScript('pgtally', { ...files, migrations: [...files.migrations, 'create table pgtally.later ()'] }, files.migrations.length + 1)
    const statements = installScript('pgtally', files, 0).split(/(?<=^\$pgtally\$;)$/m)
    await client.query(statements[0] ?? '')
    await expect(client.query(statements[1] ?? '')).rejects.toMatchObject({ message: expect.stringContaining('one transaction') })
    expect(await value(client, `select to_regnamespace('pgtally')`)).toBeNull()
    await installed(db)
    await expect(db.pool.query(upgrade)).rejects.toMatchObject({ message: expect.stringContaining('and this upgrades version 2') })
    expect(() => installScript('pgtally', files, 99)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })

  test('psql makes of it what install() makes', async (context) => {
    const tools = await findPostgresTools()
    if (tools === undefined) return context.skip(toolsMissing)
    const [one, other] = [await fresh(), await fresh()]
    const program = execFile(`${tools.directory}/psql`, [`--dbname=${one.connectionString}`, '--quiet', '--no-psqlrc', '--set', 'ON_ERROR_STOP=1'])
    program.stdin?.end(asTransaction(installScript('pgtally', await readSqlFiles('pgtally'), 0)))
    const code = await new Promise((resolve) => program.on('close', resolve))
    expect(code).toBe(0)
    await installed(other)
    expect(await dumpSchema(one.pool, { bodies: true })).toBe(await dumpSchema(other.pool, { bodies: true }))
  })
})

// Those that were released are frozen in files; the version of today is made as its file will be.
const frozen = (await readdir(schemaFolder)).filter((name) => /^version-\d+\.sql$/.test(name)).toSorted()
const current = await currentSnapshot()
const snapshots = [...new Set([...frozen, current.name])]
const readSnapshot = async (name: string) => (frozen.includes(name) ? read(name) : current.text)

/** The database as that version left it. */
async function restored(snapshot: string): Promise<TestDatabase> {
  const db = await fresh()
  const client = await db.connect()
  await client.query(await readSnapshot(snapshot))
  return db
}

/** A fresh installation with which the same was done. */
async function freshWithScenario(snapshot: string, install: (db: TestDatabase) => Promise<unknown>): Promise<TestDatabase> {
  const db = await fresh()
  await install(db)
  await db.pool.query((await readSnapshot(snapshot)).split(snapshotSeparator)[1] ?? '')
  return db
}

const withSource = ['post_likes', 'weights', 'votes', 'likes again']

test.each(snapshots)('%s is upgraded: it becomes what a fresh installation is, and every count goes on', async (snapshot) => {
  const db = await restored(snapshot)
  const tally = createTally({ pool: db.pool })
  expect((await tally.install()).from).toBe(Number(/\d+/.exec(snapshot)?.[0]))
  const other = await freshWithScenario(snapshot, installed)
  expect(await dumpSchema(db.pool, { bodies: true })).toBe(await dumpSchema(other.pool, { bodies: true }))

  // What was pending, carried and packed is there, and what was interrupted goes on.
  for (const name of ['weights', 'votes', 'likes again']) await tally.counter(name).reconcile()
  for (const name of withSource) expect(await violations(db, name)).toEqual([])
  expect(await tally.drain()).toMatchObject({ failed: [] })
  for (const name of withSource) expect(await tally.counter(name).audit()).toMatchObject({ driftingKeys: 0 })
  const { counters, consumers } = await tally.status()
  expect(counters.flatMap(({ problems }) => problems)).toEqual([])
  expect(counters.reduce((sum, { pendingEvents, carriedKeys }) => sum + pendingEvents + carriedKeys, 0)).toBe(0)
  expect(await tally.counter('page_views').getMany(['/home', '/about'])).toEqual(new Map([['/home', 2], ['/about', 3]]))
  expect(await tally.counter('post_likes').milestones(9)).toMatchObject([{ threshold: 2 }, { threshold: 5 }])
  expect(await value(db.pool, `select sum(value)::int from pgtally.count_${await value(db.pool, `select counter_id from pgtally.counter where name = 'received_likes'`)}`)).toBeGreaterThan(600)

  // The consumers, too: an open batch, one of which the claim has ended, failed events.
  expect(consumers.find(({ name }) => name === 'notifier')).toMatchObject({ openBatches: 1, retryingEvents: expect.any(Number), deadLetters: expect.any(Number) })
  expect((await tally.queue('post_likes').deadLetters('notifier')).length).toBeGreaterThan(0)
  const seen: number[] = []
  await using notifier = tally.consumer({ queue: 'post_likes', name: 'notifier', pollIntervalMs: 5, handler: async (batch) => void seen.push(Number(batch.id)) })
  await expect.poll(async () => (await tally.status()).consumers.find(({ name }) => name === 'notifier'), { timeout: 60_000 })
    .toMatchObject({ pendingEvents: 0, openBatches: 0, retryingEvents: 0, lastError: null })
  await notifier.stop()
  expect(seen.length).toBeGreaterThanOrEqual(2)
  const archive = await value<string>(db.pool, `select pgtally.next_batch('post_likes', 'archive')`)
  expect(await value(db.pool, 'select count(*)::int from pgtally.get_batch_events($1)', [archive])).toBeGreaterThan(600)
  await db.pool.query('select pgtally.finish_batch($1)', [archive])
})

test('a made-up next version: migrations run, functions are replaced, added and dropped, and rights go with them', async () => {
  const snapshot = snapshots[0] ?? ''
  const db = await restored(snapshot)
  const role = `pgtally_test_${randomBytes(6).toString('hex')}`
  await db.pool.query(`create role ${role}; select pgtally.grant_access(workers => '{${role}}')`)
  try {
    // Whoever may create in a schema on the installer's search_path must not be able to run anything as him.
    await db.pool.query(`create function trap(oid, regclass) returns boolean language plpgsql as $$ begin raise 'trapped'; end $$; create operator public.= (leftarg = oid, rightarg = regclass, function = trap)`)
    await db.pool.query('create view monitoring as select name, pending_events from pgtally.counter_status()')
    const files = await readSqlFiles('pgtally')
    const without = files.functions.filter((text) => !text.startsWith('-- sample_keys('))
    const next = {
      // Of another result: that is dropped first.
      migrations: [...files.migrations, `
        alter table pgtally.queue add column note text not null default 'none';
        create table pgtally.journal (entry text);
        drop function if exists pgtally.system_identifier();`],
      functions: [
        ...without,
        // Of every other change it is replaced as it is: another body, one more parameter.
        'create or replace function pgtally.system_identifier() returns numeric language sql stable set search_path = pg_catalog, pg_temp as $$ select system_identifier::numeric from pg_control_system() $$;',
        'create or replace function pgtally.oldest_transaction() returns timestamptz language sql volatile set search_path = pg_catalog, pg_temp as $$ select null::timestamptz $$;',
        `create or replace function pgtally.is_backfilling(counter_id integer, more text default 'x') returns boolean language sql stable set search_path = pg_catalog, pg_temp as $$ select false $$;`,
        'create or replace function pgtally.brand_new() returns integer language sql stable set search_path = pg_catalog, pg_temp as $$ select 2 $$;',
      ].filter((text) => !text.startsWith('-- system_identifier(') && !text.startsWith('-- oldest_transaction(') && !text.startsWith('-- is_backfilling(')),
    }
    await db.pool.query(installScript('pgtally', next, 1))
    const other = await freshWithScenario(snapshot, ({ pool }) => pool.query(installScript('pgtally', next, 0)))
    await other.pool.query(`select pgtally.grant_access(workers => '{${role}}')`)
    expect(await dumpSchema(db.pool, { bodies: true })).toBe(await dumpSchema(other.pool, { bodies: true }))
    expect(await column(db.pool, `select proname::text from pg_proc where pronamespace = 'pgtally'::regnamespace and proname in ('sample_keys', 'brand_new', 'is_backfilling') order by 1`))
      .toEqual(['brand_new', 'is_backfilling'])
    expect(await value(db.pool, `select has_table_privilege('${role}', 'pgtally.journal', 'select') and has_function_privilege('${role}', 'pgtally.brand_new()', 'execute')`)).toBe(true)
    expect(await value(db.pool, 'select count(*)::int from monitoring')).toBeGreaterThan(0)

    await applyAll(db.pool, 'post_likes')
    expect(await violations(db, 'post_likes')).toEqual([])
    // And the code of today does not touch it.
    await expect(createTally({ pool: db.pool }).drain()).rejects.toMatchObject({ code: 'SCHEMA_TOO_NEW' })
    await other.pool.query(`drop owned by ${role}`)
  } finally {
    await db.pool.query(`drop owned by ${role}; drop role ${role}`)
  }
})
