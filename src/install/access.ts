import type { Pool } from 'pg'
import { z } from 'zod'

import { PgtallyError, isDatabaseError, translateError } from '../errors.ts'
import { query } from '../executor.ts'
import { inTransaction } from '../transaction.ts'
import { requireInstalled } from './install.ts'

/** Roles of the database server, by what they may do with pgtally. A role may be several. */
export interface Access {
  /** May add events to counters and queues that have no source (`add()`, `buffered()`), and `waitFor()` them. A role that only writes to a source needs no right on pgtally. */
  writers?: readonly string[] | undefined
  /** May read definitions, counts (also fresh ones), status and dead letters, and audit. */
  readers?: readonly string[] | undefined
  /** May run `worker()`, `drain()` and consumers, whichever; whoever may read may not. */
  workers?: readonly string[] | undefined
}

export interface Granted {
  /** What the roles still lack on the user's own tables: GRANT statements for whoever owns those. */
  missing: string[]
}

const roles = z.array(z.string().min(1)).default([])
const accessSchema = z
  .strictObject({ writers: roles, readers: roles, workers: roles })
  .refine(({ writers, readers, workers }) => writers.length + readers.length + workers.length > 0, { message: 'name at least one writer, reader or worker' })

/** @throws PgtallyError INVALID_ARGUMENT, NOT_FOUND (a role), PERMISSION_DENIED, NOT_INSTALLED, SCHEMA_TOO_NEW, SCHEMA_TOO_OLD */
export async function grant(pool: Pool, schema: string, access: Access): Promise<Granted> {
  await change(pool, schema, 'grant_access', access)
  const rows = await query<{ statement: string }>(pool, `select statement from ${schema}.missing_rights()`)
  return { missing: rows.map(({ statement }) => statement) }
}

/** @throws PgtallyError as `grant()`, but for NOT_FOUND */
export async function revoke(pool: Pool, schema: string, access: Access): Promise<void> {
  await change(pool, schema, 'revoke_access', access)
}

async function change(pool: Pool, schema: string, name: 'grant_access' | 'revoke_access', access: Access): Promise<void> {
  const parsed = accessSchema.safeParse(access)
  if (!parsed.success) throw new PgtallyError('INVALID_ARGUMENT', `Roles: ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
  const { writers, readers, workers } = parsed.data
  try {
    await requireInstalled(pool, schema)
    await inTransaction(pool, (client) => client.query(`select ${schema}.${name}($1::text[], $2::text[], $3::text[])`, [writers, readers, workers]))
  } catch (error) {
    if (isDatabaseError(error) && error.code === '42501') {
      throw new PgtallyError('PERMISSION_DENIED', `${error.message}. Rights on pgtally are given by the role that has installed it.`, { cause: error })
    }
    throw translateError(error)
  }
}
