import type { Pool } from 'pg'

import { translateDefinitionError } from '../errors.ts'
import { requireInstalled } from '../install/install.ts'
import { inLockingTransaction } from '../transaction.ts'
import { backfill } from './reconcile.ts'
import type { MeasureOptions } from './measure.ts'
import { createCounterArguments } from './definition.ts'
import type { CounterDefinition } from './definition.ts'

const argumentTypes: Readonly<Record<string, string>> = {
  source: 'text::regclass',
  target: 'text::regclass',
  source_key: 'text::name',
  source_data: 'text[]::name[]',
  target_key: 'text::name',
  target_column: 'text::name',
  rotation_period: 'text::interval',
  retain: 'text::interval',
  source_time: 'text::name',
  milestones: 'text[]::bigint[]',
  buckets: 'text::jsonb',
  ranking: 'text::bool',
  half_lives: 'text[]::interval[]',
}

export interface CreateCounterOptions extends MeasureOptions {
  /** Count the rows that are there already, or leave that to a later `reconcile()`. Default true. */
  backfill?: boolean | undefined
}

/** @throws PgtallyError INVALID_DEFINITION, DEFINITION_CONFLICT, NOT_FOUND, PERMISSION_DENIED, LOCK_TIMEOUT, NOT_INSTALLED */
export async function createCounter(
  pool: Pool,
  schema: string,
  name: string,
  definition: CounterDefinition,
  { backfill: wanted = true, ...options }: CreateCounterOptions = {},
): Promise<boolean> {
  const given = Object.entries(createCounterArguments(name, definition)).filter(([, value]) => value !== undefined)
  // Named arguments: what is not given keeps the function's own default.
  const list = given.map(([argument], index) => `${argument} => $${index + 1}::${argumentTypes[argument] ?? 'text'}`).join(', ')
  const text = `select ${schema}.create_counter(${list})::text as created`
  try {
    await requireInstalled(pool, schema)
    const { rows } = await inLockingTransaction(pool, (client) => client.query<{ created: string }>(text, given.map(([, value]) => value)))
    // Also when the process that created it did not come to that.
    if (wanted) await backfill({ pool, schema, name }, options)
    return rows[0]?.created === 'true'
  } catch (error) {
    throw translateDefinitionError(error)
  }
}

/** @throws PgtallyError NOT_FOUND, PERMISSION_DENIED, LOCK_TIMEOUT, NOT_INSTALLED */
export async function dropCounter(pool: Pool, schema: string, name: string): Promise<void> {
  try {
    await requireInstalled(pool, schema)
    await inLockingTransaction(pool, (client) => client.query(`select ${schema}.drop_counter($1::text)`, [name]))
  } catch (error) {
    throw translateDefinitionError(error)
  }
}
