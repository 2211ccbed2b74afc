import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'

import type { Pool, PoolClient } from 'pg'

import { PgtallyError, isDatabaseError, translateDefinitionError } from '../errors.ts'
import { inLockingTransaction, inTransaction } from '../transaction.ts'

const sqlRoot = new URL('../../sql/', import.meta.url)
const oldestServer = 14

export interface InstallResult {
  /** The schema's version before, 0 when it was not there. */
  from: number
  /** The schema's version now. */
  to: number
}

interface SqlFiles {
  /** In order; the schema's version is their number. Every release that changes any SQL adds one. */
  migrations: string[]
  functions: { name: string; definition: string }[]
  /** Tells two states of the functions apart within one version, which happens in development only. */
  functionsHash: string
}

/**
 * Installs pgtally's schema or brings it up to date, in one transaction. Run again it changes nothing; run by many at
 * once, one does the work and the others wait for it.
 *
 * @throws PgtallyError SERVER_TOO_OLD, SCHEMA_TOO_NEW, PERMISSION_DENIED, INVALID_ARGUMENT (the schema belongs to something else)
 */
export async function install(pool: Pool, schema: string): Promise<InstallResult> {
  const files = await readSqlFiles(schema)
  try {
    return await inTransaction(pool, (client) => installInTransaction(client, schema, files))
  } catch (error) {
    throw translateDefinitionError(error)
  }
}

async function installInTransaction(client: PoolClient, schema: string, files: SqlFiles): Promise<InstallResult> {
  await requireServer(client)
  await client.query(`select pg_advisory_xact_lock(hashtextextended('pgtally install ' || $1, 0))`, [schema])
  const installed = await installedVersion(client, schema)
  const to = files.migrations.length
  const from = installed?.version ?? 0
  if (from > to) throw tooNew(schema, from, to)
  if (from === to && installed?.functionsHash === files.functionsHash) return { from, to }

  if (installed === undefined) await createSchema(client, schema)
  for (const migration of files.migrations.slice(from)) await client.query(migration)
  // They call one another, in whatever order they come.
  await client.query('set local check_function_bodies = off')
  for (const { name, definition } of files.functions) await replaceFunction(client, schema, name, definition)
  await dropOtherFunctions(client, schema)
  // A function may be called by everyone unless that is taken back; the triggers' functions need no such right.
  await client.query(`revoke all on all routines in schema ${schema} from public`)
  await client.query(`delete from ${schema}.installation`)
  await client.query(`insert into ${schema}.installation (schema_version, functions_hash) values ($1, $2)`, [to, files.functionsHash])
  return { from, to }
}

/**
 * Removes pgtally's schema, and with it the triggers on the source tables. The user's tables and the counts in them stay.
 * Waits for transactions that use a source.
 *
 * @returns false when there was nothing to remove
 * @throws PgtallyError PERMISSION_DENIED, LOCK_TIMEOUT, INVALID_ARGUMENT (the schema belongs to something else)
 */
export async function uninstall(pool: Pool, schema: string): Promise<boolean> {
  try {
    return await inLockingTransaction(pool, async (client) => {
      if ((await installedVersion(client, schema)) === undefined) return false
      // First of all, while nothing else is locked: a transaction that has read a source and is about to write there
      // would wait for us, and we for it.
      const { rows } = await client.query<{ id: string }>(`select queue_id::text as id from ${schema}.source`)
      await client.query('set local client_min_messages = warning')
      for (const { id } of rows) await client.query(`select ${schema}.drop_source(${id})`)
      await client.query(`drop schema ${schema} cascade`)
      return true
    })
  } catch (error) {
    throw translateDefinitionError(error)
  }
}

/**
 * Makes sure that this version of pgtally and the installed schema fit together.
 *
 * @throws PgtallyError NOT_INSTALLED, SCHEMA_TOO_NEW, SCHEMA_TOO_OLD
 */
export async function requireInstalled(pool: Pool, schema: string): Promise<void> {
  await inTransaction(pool, (client) => checkInstalled(client, schema))
}

/** As `requireInstalled`, in the caller's transaction. */
export async function checkInstalled(client: PoolClient, schema: string): Promise<void> {
  const { length: expected } = await readdir(new URL('migrations/', sqlRoot))
  const installed = await installedVersion(client, schema)
  if (installed === undefined) {
    throw new PgtallyError('NOT_INSTALLED', `pgtally is not installed in the schema "${schema}" of this database. Run \`pgtally install\`, or name the right schema.`)
  }
  if (installed.version > expected) throw tooNew(schema, installed.version, expected)
  if (installed.version < expected) {
    throw new PgtallyError('SCHEMA_TOO_OLD', `The schema "${schema}" has version ${installed.version}, and this pgtally needs ${expected}. Run \`pgtally install\` to upgrade it.`)
  }
}

function tooNew(schema: string, installed: number, expected: number): PgtallyError {
  return new PgtallyError(
    'SCHEMA_TOO_NEW',
    `The schema "${schema}" has version ${installed}, and this pgtally knows ${expected} only. Use the version of pgtally that installed it, or a newer one.`,
  )
}

async function requireServer(client: PoolClient): Promise<void> {
  const { rows } = await client.query<{ number: string; name: string }>(
    `select current_setting('server_version_num') as number, current_setting('server_version') as name`,
  )
  const [server] = rows
  if (server !== undefined && Number(server.number) < oldestServer * 10_000) {
    throw new PgtallyError('SERVER_TOO_OLD', `The server is PostgreSQL ${server.name}. pgtally needs ${oldestServer} or later.`)
  }
}

async function installedVersion(client: PoolClient, schema: string): Promise<{ version: number; functionsHash: string } | undefined> {
  // All as text, which no type parser of the caller's changes.
  const { rows } = await client.query<{ table: string | null }>(
    `select to_regclass($1::text || '.installation')::text as table from pg_catalog.pg_namespace where nspname = $1::text`,
    [schema],
  )
  const [found] = rows
  if (found === undefined) return undefined
  if (found.table === null) {
    throw new PgtallyError('INVALID_ARGUMENT', `The schema "${schema}" exists and is not pgtally's. Name another one with --schema.`)
  }
  const installation = await client.query<{ version: string; hash: string }>(
    `select schema_version::text as version, functions_hash as hash from ${schema}.installation`,
  )
  const [row] = installation.rows
  return row === undefined ? undefined : { version: Number(row.version), functionsHash: row.hash }
}

async function createSchema(client: PoolClient, schema: string): Promise<void> {
  const { rows } = await client.query<{ quoted: string }>('select quote_ident($1::text) as quoted', [schema])
  if (rows[0]?.quoted !== schema) {
    throw new PgtallyError('INVALID_ARGUMENT', `"${schema}" is a reserved word of SQL and cannot be the name of pgtally's schema. Name another one.`)
  }
  await client.query(`create schema ${schema}`)
}

/** In place, so that grants and what the user has built on it stay; only a result of another type needs a new function. */
async function replaceFunction(client: PoolClient, schema: string, name: string, definition: string): Promise<void> {
  const cannotReplace = '42P13'
  await client.query('savepoint replace')
  try {
    await client.query(definition)
  } catch (error) {
    if (!isDatabaseError(error) || error.code !== cannotReplace) throw error
    await client.query('rollback to replace')
    await dropFunctions(client, schema, `proname = $2::text`, [name])
    await client.query(definition)
  }
  await client.query('release replace')
}

/** What an older version had: whatever this transaction has not written. Not the sources' trigger functions, which are made for each. */
async function dropOtherFunctions(client: PoolClient, schema: string): Promise<void> {
  await dropFunctions(client, schema, `prokind in ('f', 'p') and proname !~ '^(source|insert_event)_[0-9]' and age(xmin) > 0`, [])
}

async function dropFunctions(client: PoolClient, schema: string, condition: string, values: readonly unknown[]): Promise<void> {
  const { rows } = await client.query<{ signature: string }>(
    `select oid::regprocedure::text as signature from pg_catalog.pg_proc where pronamespace = $1::text::regnamespace and ${condition}`,
    [schema, ...values],
  )
  for (const { signature } of rows) await client.query(`drop routine ${signature}`)
}

async function readSqlFiles(schema: string): Promise<SqlFiles> {
  const read = async (folder: string) => {
    const files = (await readdir(new URL(`${folder}/`, sqlRoot))).toSorted()
    return Promise.all(
      files.map(async (file) => {
        const text = await readFile(new URL(`${folder}/${file}`, sqlRoot), 'utf8')
        // The files are written for the schema `pgtally`; nothing else in them is spelled like it with a dot behind.
        return { name: file.replace('.sql', ''), definition: text.replaceAll('pgtally.', `${schema}.`) }
      }),
    )
  }
  const [migrations, functions] = await Promise.all([read('migrations'), read('functions')])
  const functionsHash = createHash('sha256').update(functions.map(({ definition }) => definition).join('\n')).digest('hex')
  return { migrations: migrations.map(({ definition }) => definition), functions, functionsHash }
}
