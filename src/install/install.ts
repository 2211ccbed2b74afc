import type { Pool, PoolClient } from 'pg'

import { PgtallyError, translateDefinitionError } from '../errors.ts'
import { inLockingTransaction, inTransaction } from '../transaction.ts'
import { hashOf, installScript, knownVersion, lockInstallation, oldestServer, readSqlFiles } from './script.ts'

export interface InstallResult {
  /** The schema's version before, 0 when it was not there. */
  from: number
  /** The schema's version now. */
  to: number
}

/** What an installation has to do. */
interface InstallPlan extends InstallResult {
  /** The SQL, for a transaction; undefined when all is up to date. */
  script: string | undefined
}

/**
 * Installs pgtally's schema or brings it up to date, in one transaction. Run again it changes nothing; run by many at
 * once, one does the work and the others wait for it.
 *
 * @throws PgtallyError SERVER_TOO_OLD, SCHEMA_TOO_NEW, PERMISSION_DENIED, INVALID_ARGUMENT (the schema belongs to something else)
 */
export async function install(pool: Pool, schema: string): Promise<InstallResult> {
  try {
    return await inTransaction(pool, async (client) => {
      await client.query(`select from ${lockInstallation(schema)}`)
      const { script, ...result } = await plan(client, schema)
      if (script !== undefined) await client.query(script)
      return result
    })
  } catch (error) {
    throw translateDefinitionError(error)
  }
}

/**
 * What `install()` would do now. Changes nothing.
 *
 * @throws PgtallyError as `install()`
 */
export async function planInstall(pool: Pool, schema: string): Promise<InstallPlan> {
  try {
    return await inTransaction(pool, (client) => plan(client, schema))
  } catch (error) {
    throw translateDefinitionError(error)
  }
}

async function plan(client: PoolClient, schema: string): Promise<InstallPlan> {
  await requireServer(client)
  const files = await readSqlFiles(schema)
  const installed = await installedVersion(client, schema)
  const to = files.migrations.length
  const from = installed?.version ?? 0
  if (from > to) throw tooNew(schema, from, to)
  if (installed === undefined) await requireUnquoted(client, schema)
  const isUpToDate = from === to && installed?.functionsHash === hashOf(files)
  return { from, to, script: isUpToDate ? undefined : installScript(schema, files, from) }
}

/**
 * Removes pgtally's schema, and with it the triggers on the source tables. The user's tables and the counts in them stay.
 * Waits for transactions that use a source.
 *
 * @returns false when there was nothing to remove
 * @throws PgtallyError PERMISSION_DENIED, LOCK_TIMEOUT, SCHEMA_TOO_NEW, INVALID_ARGUMENT (the schema belongs to something else)
 */
export async function uninstall(pool: Pool, schema: string): Promise<boolean> {
  try {
    return await inLockingTransaction(pool, async (client) => {
      const installed = await installedVersion(client, schema)
      if (installed === undefined) return false
      // What it has made is unknown here.
      const known = await knownVersion()
      if (installed.version > known) throw tooNew(schema, installed.version, known)
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
  const expected = await knownVersion()
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

async function requireUnquoted(client: PoolClient, schema: string): Promise<void> {
  const { rows } = await client.query<{ quoted: string }>('select quote_ident($1::text) as quoted', [schema])
  if (rows[0]?.quoted !== schema) {
    throw new PgtallyError('INVALID_ARGUMENT', `"${schema}" is a reserved word of SQL and cannot be the name of pgtally's schema. Name another one.`)
  }
}
