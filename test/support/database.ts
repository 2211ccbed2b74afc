import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { inject } from 'vitest'

export interface TestDatabase extends AsyncDisposable {
  readonly connectionString: string
  readonly pool: pg.Pool
  /** A connection of its own, for a test that needs several sessions; closed with the database. */
  connect(): Promise<pg.Client>
  /** Closes every connection opened here and removes the database. May be called again. */
  drop(): Promise<void>
}

/**
 * Creates a database that no other test file uses.
 *
 * @param serverUrl a superuser's URL on another server than the one that all tests share, as from `dedicatedServer()`
 *
 * @example
 * ```ts
 * let db: TestDatabase
 * beforeAll(async () => {
 *   db = await createTestDatabase()
 *   return db.drop
 * })
 * ```
 */
export async function createTestDatabase(serverUrl: string = inject('serverUrl')): Promise<TestDatabase> {
  const name = `pgtally_test_${randomBytes(6).toString('hex')}`
  await execute(serverUrl, `create database ${name}`)

  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  const connectionString = url.href

  const pool = new pg.Pool({ connectionString, max: 20 })
  // A test may end connections by force; an idle one that dies is no failure by itself.
  pool.on('error', () => {})
  const clients: pg.Client[] = []
  const connect = async () => {
    const client = new pg.Client({ connectionString })
    client.on('error', () => {})
    clients.push(client)
    await client.connect()
    return client
  }

  let dropping: Promise<void> | undefined
  const closeAndDrop = async () => {
    await Promise.allSettled([...clients.map((client) => client.end()), pool.end()])
    await leave(serverUrl, name)
    await execute(serverUrl, `drop database if exists ${name} with (force)`)
  }
  const drop = () => (dropping ??= closeAndDrop())
  return { connectionString, pool, connect, drop, [Symbol.asyncDispose]: drop }
}

/**
 * Waits until `condition` gives a value other than `false` and `undefined`, and returns that. What `condition`
 * throws is thrown at once.
 *
 * @param options.what what is waited for, as the error shall name it
 * @throws Error after `timeoutMs` (60 000, as the machine may be busy)
 *
 * @example
 * ```ts
 * await waitFor(async () => (await pending()) === 0, { what: 'an empty queue' })
 * ```
 */
export async function waitFor<T>(
  condition: () => Promise<T | false | undefined>,
  { what, timeoutMs = 60_000 }: { what: string; timeoutMs?: number },
): Promise<T> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const value = await condition()
    if (value !== false && value !== undefined) return value
    if (performance.now() > deadline) throw new Error(`Waited ${timeoutMs} ms in vain for ${what}.`)
    await sleep(20)
  }
}

/** A pool's end does not wait for its connections': one that is cut off meanwhile would emit an error that nobody listens to. What a failed test has left open is not waited for long. */
async function leave(serverUrl: string, name: string): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    const { rows } = await execute(serverUrl, `select from pg_stat_activity where datname = '${name}'`)
    if (rows.length === 0) return
    await sleep(20)
  }
}

async function execute(connectionString: string, sql: string): Promise<pg.QueryResult> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    return await client.query(sql)
  } finally {
    await client.end()
  }
}
