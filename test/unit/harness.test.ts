import { beforeAll, expect, test } from 'vitest'

import { createTestDatabase, waitFor, type TestDatabase } from '../support/database.ts'
import { dedicatedServer } from '../support/server.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createTestDatabase()
  return db.drop
})

test('a database of its own', async () => {
  await db.pool.query('create table t (a int)')
  const client = await db.connect()
  const { rows } = await client.query('select count(*)::text as count from t')
  expect(rows).toEqual([{ count: '0' }])
})

test('waitFor returns the value and says what it waited for in vain', async () => {
  let calls = 0
  expect(await waitFor(async () => ++calls > 2 && calls, { what: 'three calls' })).toBe(3)
  await expect(waitFor(async () => false, { what: 'Godot', timeoutMs: 1 })).rejects.toThrow('Godot')
})

test('a dedicated server keeps its committed data over a crash', async (context) => {
  await using server = await dedicatedServer(context)
  await using own = await createTestDatabase(server.connectionString)
  await own.pool.query('create table t as select 7 as a')
  const idle = await own.connect()
  await server.crash()
  await expect(idle.query('select 1')).rejects.toThrow(/terminat|not queryable/)
  await server.restart()
  expect((await own.pool.query('select a from t')).rows).toEqual([{ a: 7 }])
})
