import { randomBytes } from 'node:crypto'

import pg from 'pg'

import { createTally, type Tally } from '../../src/index.ts'
import type { TestDatabase } from './database.ts'

/** A role that is no superuser, and sessions of it. */
export interface TestRole {
  readonly role: string
  readonly client: pg.Client
  readonly pool: pg.Pool
  readonly url: string
  readonly tally: Tally
}

/** A new role, also put into `roles`: roles belong to the whole server, so they are to be dropped in the end. */
export async function createRole(db: TestDatabase, roles: TestRole[], schema = 'pgtally'): Promise<TestRole> {
  const role = `pgtally_test_${randomBytes(6).toString('hex')}`
  await db.pool.query(`create role ${role} login password 'test'`)
  const url = new URL(db.connectionString)
  url.username = role
  url.password = 'test'
  // In the end the database is dropped by force.
  const client = new pg.Client({ connectionString: url.href })
  client.on('error', () => {})
  await client.connect()
  const pool = new pg.Pool({ connectionString: url.href, max: 10 })
  pool.on('error', () => {})
  const made = { role, client, pool, url: url.href, tally: createTally({ pool, schema }) }
  roles.push(made)
  return made
}

/** Ends their sessions and drops them, with what they own in the database. */
export async function dropRoles(db: TestDatabase, roles: readonly TestRole[]): Promise<void> {
  await Promise.allSettled(roles.flatMap(({ client, pool }) => [client.end(), pool.end()]))
  for (const { role } of roles) await db.pool.query(`drop owned by ${role} cascade; drop role ${role}`)
}
