import { appendFile } from 'node:fs/promises'
import path from 'node:path'

import pg from 'pg'
import { expect, test } from 'vitest'

import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, createBlog, installed, like, value } from './support/fixtures.ts'
import { cure, diagnose, find, findSoon } from './support/patient.ts'
import { makeStandby } from './support/replication.ts'
import { dedicatedServer } from './support/server.ts'

const burn = (db: TestDatabase, count: number) =>
  db.pool.query(`do $$ begin for i in 1..${count} loop perform pg_current_xact_id(); commit; end loop; end $$`)

test('settings of the server, transactions and what they hold', async (context) => {
  // No autovacuum that does by itself what the remedies do.
  await using server = await dedicatedServer(context, { autovacuum: 'off', max_locks_per_transaction: '10', max_connections: '25', max_prepared_transactions: '5' })
  await using db = await createTestDatabase(server.connectionString)
  const tally = await installed(db)
  const blog = await createBlog(db, tally)
  // Only reads: no transaction id is given out.
  const nextId = () => value<string>(db.pool, 'select pg_snapshot_xmax(pg_current_snapshot())')
  const before = await nextId()
  expect((await diagnose(db)).notChecked).toEqual([])
  expect(await nextId()).toBe(before)
  await cure(db, { code: 'AUTOVACUUM_OFF', name: 'autovacuum' })
  await db.pool.query('alter system set autovacuum = off')
  await db.pool.query('select pg_reload_conf()')

  // Transactions that are open.
  const session = await db.connect()
  await session.query(`set application_name = 'nightly report'; begin isolation level repeatable read; select 1`)
  const backend = String(await value<number>(session, 'select pg_backend_pid()'))
  const ailing = { code: 'IDLE_IN_TRANSACTION', name: backend, limits: { idleInTransactionSeconds: 0 } } as const
  expect(await find(db, { ...ailing, limits: {} })).toBeUndefined()
  expect((await findSoon(db, { code: 'TRANSACTION_OLD', name: backend, limits: { transactionSeconds: 0 } })).problem).toMatch(/nightly report, role postgres, from 127.0.0.1, idle in transaction.*dead rows cannot be removed.*select pg_backend_pid\(\)$/)
  expect((await cure(db, ailing)).problem).toMatch(/keeps its locks and holds back vacuum/)

  // Prepared ones, which have locked a row as well.
  const preparing = await db.connect()
  await preparing.query('begin')
  await preparing.query(`update ${blog.posts} set title = 'x' where id = 1`)
  await preparing.query(`prepare transaction 'it''s lost'`)
  await like(db.pool, blog, 1)
  expect(await apply(db.pool, blog.counter)).toMatchObject({ carried: 1 })
  const held = await findSoon(db, { code: 'CARRIED_LONG', name: blog.counter, limits: { carriedSeconds: 0 } })
  expect(held.problem).toContain(`The prepared transaction "it's lost" has it locked.`)
  expect(held.remedy).toContainEqual({ sql: `ROLLBACK PREPARED 'it''s lost';` })
  await cure(db, { code: 'PREPARED_TRANSACTION', limits: { preparedTransactionSeconds: 0 } })
  await cure(db, { code: 'CARRIED_LONG', name: blog.counter, limits: { carriedSeconds: 0 } })

  await preparing.query('begin')
  await like(preparing, blog, 1)
  await preparing.query(`prepare transaction 'writer'`)
  await db.pool.query(`insert into pgtally.event_1 (ev_key, ev_delta, ev_time, ev_slot) select 1, 0, now() - interval '1 hour', s from generate_series(0, 2) s`)
  expect((await findSoon(db, { code: 'SLOTS_NOT_EMPTIED', name: blog.counter })).problem).toContain('the prepared transaction "writer", which has locked a slot')
  await preparing.query(`commit prepared 'writer'`)
  expect(await find(db, { code: 'PREPARED_TRANSACTION', limits: { preparedTransactionSeconds: 0 } })).toBeUndefined()

  // Transaction ids.
  await burn(db, 3000)
  expect(await find(db, { code: 'WRAPAROUND_NEAR', limits: { wraparoundAge: 2000, wraparoundAgeNear: 2500 } })).toMatchObject({ level: 'error' })
  await cure(db, { code: 'WRAPAROUND_AGE', limits: { wraparoundAge: 2000 } })

  // Room for locks.
  expect(await find(db, { code: 'LOCK_TABLE_SMALL' })).toBeUndefined()
  for (let number = 1; number <= 10; number++) await tally.createCounter(`counter ${number}`, { keyType: 'bigint' })
  const { remedy } = await findSoon(db, { code: 'LOCK_TABLE_SMALL' })
  for (const one of remedy) if ('sql' in one) await db.pool.query(one.sql)
  await server.restart()
  await waitFor(() => db.pool.query('select 1').then(() => true, () => false), { what: 'the server to be back' })
  expect(await find(db, { code: 'LOCK_TABLE_SMALL' })).toBeUndefined()
})

test('a standby, and what it holds back on the primary', async (context) => {
  await using primary = await dedicatedServer(context)
  await using db = await createTestDatabase(primary.connectionString)
  const tally = await installed(db)
  const blog = await createBlog(db, tally)
  await like(db.pool, blog, 1)
  await db.pool.query(`select pg_create_physical_replication_slot('standby_1', true)`)
  await using standby = await dedicatedServer(context)
  await makeStandby(primary, standby, { primary_slot_name: 'standby_1', hot_standby_feedback: 'on', wal_receiver_status_interval: '1s', wal_retrieve_retry_interval: '100ms' })
  const url = new URL(db.connectionString)
  url.port = String(standby.port)
  const pool = new pg.Pool({ connectionString: url.href })
  pool.on('error', () => {})
  pool.on('connect', (client) => client.on('error', () => {}))
  const onStandby: TestDatabase = { ...db, connectionString: url.href, pool, connect: async () => pool.connect() as never }

  const diagnosis = await waitFor(() => diagnose(onStandby).catch(() => undefined), { what: 'the standby to answer' })
  expect(diagnosis.findings.map(({ code }) => code).filter((code) => !code.startsWith('SERVER_'))).toEqual(['ROLE', 'STANDBY'])
  expect(diagnosis.notChecked).toEqual([])

  const reader = await pool.connect()
  await reader.query('begin isolation level repeatable read; select 1')
  const limits = { heldTransactions: 100 }
  await waitFor(async () => {
    await burn(db, 200)
    return (await find(db, { code: 'REPLICATION_SLOT_HOLDS', limits })) !== undefined
  }, { what: 'the standby to hold back the primary' })
  expect(await findSoon(db, { code: 'REPLICATION_SLOT_HOLDS', limits })).toMatchObject({ subject: { name: 'replication slot standby_1' }, remedy: [{ advice: expect.stringContaining('on the standby') }] })
  // Without a slot it is the standby's connection that says so.
  await appendFile(path.join(standby.dataDir, 'postgresql.conf'), `primary_slot_name = ''\n`)
  reader.release(true)
  await standby.crash()
  await cure(db, { code: 'REPLICATION_SLOT_HOLDS', limits })

  await standby.restart()
  const again = await waitFor(() => pool.connect().catch(() => undefined), { what: 'the standby to be back' })
  await again.query('begin isolation level repeatable read; select 1')
  await waitFor(async () => {
    await burn(db, 200)
    return (await find(db, { code: 'STANDBY_HOLDS', limits })) !== undefined
  }, { what: 'the standby to hold back the primary' })
  // What the remedy says: found there, and ended.
  const ailment = { code: 'TRANSACTION_OLD', limits: { transactionSeconds: 0 } } as const
  await cure(onStandby, ailment)
  await waitFor(async () => {
    await burn(db, 1)
    return (await find(db, { code: 'STANDBY_HOLDS', limits })) === undefined
  }, { what: 'nothing to be held back' })
  again.release(true)
  await pool.end()
})
