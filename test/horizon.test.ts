import { beforeAll, expect, test } from 'vitest'

import { Horizon } from '../src/worker/horizon.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { dedicatedServer } from './support/server.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createTestDatabase()
  return db.drop
})

// It lies still while no transaction is given an id; then nothing is held back, as nothing becomes dead.
const transactions = () => db.pool.query('select pg_current_xact_id()')

const hold = {
  'a session that is idle in a REPEATABLE READ transaction': async () => {
    const session = await db.connect()
    await session.query('begin isolation level repeatable read; select 1')
    return () => session.query('rollback')
  },
  'a session that has written and is idle': async () => {
    const session = await db.connect()
    await session.query('begin; select pg_current_xact_id()')
    return () => session.query('rollback')
  },
}

test.each(Object.entries(hold))('a worker rests the longer, the longer %s holds back the horizon', async (_, begin) => {
  const horizon = new Horizon(db.pool)
  const rest = async () => {
    await transactions()
    return horizon.restMs()
  }
  expect(await rest()).toBeLessThan(1)
  const end = await begin()
  const first = await waitFor(async () => (await rest()) || undefined, { what: 'a rest' })
  await waitFor(async () => (await rest()) > first + 5, { what: 'a longer rest' })
  await end()
  await waitFor(async () => (await rest()) === 0, { what: 'no rest' })
})

test('a server on which nothing happens holds back nothing', async (context) => {
  // Transaction ids are the whole server's.
  await using server = await dedicatedServer(context)
  await using own = await createTestDatabase(server.connectionString)
  const horizon = new Horizon(own.pool)
  const session = await own.connect()
  await session.query('begin isolation level repeatable read; select 1')
  expect(await horizon.restMs()).toBe(0)
})
