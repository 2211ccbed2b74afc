import { setTimeout as sleep } from 'node:timers/promises'

import type { Pool, PoolClient } from 'pg'

import { PgtallyError, translateDefinitionError } from '../errors.ts'
import { query } from '../executor.ts'
import { inTransaction } from '../transaction.ts'
import { createCounterArguments } from './definition.ts'
import type { CounterDefinition } from './definition.ts'

// Triggers come and go under a lock that waits for the writers at work, and everyone else queues behind it: so it is
// asked for briefly, and again after a pause in which they go on.
const lockTimeoutMs = 500
const pauseMs = 500
const attempts = 60

/** @throws PgtallyError INVALID_DEFINITION, DEFINITION_CONFLICT, NOT_FOUND, PERMISSION_DENIED, LOCK_TIMEOUT, NOT_INSTALLED */
export async function createCounter(pool: Pool, schema: string, name: string, definition: CounterDefinition): Promise<boolean> {
  const given = Object.entries(createCounterArguments(name, definition)).filter(([, value]) => value !== undefined)
  // Named arguments: what is not given keeps the function's own default.
  const list = given.map(([argument], index) => `${argument} => $${index + 1}${argumentTypes[argument] ?? '::text'}`).join(', ')
  return withLockRetries(pool, async (client) => {
    const [row] = await query<{ created: boolean }>(client, `select ${schema}.create_counter(${list}) as created`, given.map(([, value]) => value))
    return row?.created === true
  })
}

const argumentTypes: Readonly<Record<string, string>> = {
  source: '::text::regclass',
  target: '::text::regclass',
  source_key: '::text::name',
  target_key: '::text::name',
  target_column: '::text::name',
  rotation_period: '::text::interval',
}

/** @throws PgtallyError NOT_FOUND, PERMISSION_DENIED, LOCK_TIMEOUT, NOT_INSTALLED */
export async function dropCounter(pool: Pool, schema: string, name: string): Promise<void> {
  await withLockRetries(pool, (client) => query(client, `select ${schema}.drop_counter($1::text)`, [name]))
}

async function withLockRetries<T>(pool: Pool, work: (client: PoolClient) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await inTransaction(pool, async (client) => {
        await client.query(`set local lock_timeout = ${lockTimeoutMs}`)
        return work(client)
      })
    } catch (error) {
      const translated = translateDefinitionError(error)
      const locked = translated instanceof PgtallyError && translated.code === 'LOCK_TIMEOUT'
      if (!locked || attempt === attempts) throw translated
      await sleep(pauseMs)
    }
  }
}
