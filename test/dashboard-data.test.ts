import pg from 'pg'
import { beforeAll, expect, test } from 'vitest'

import { createTally } from '../src/index.ts'
import type { AuditStatus, Tally } from '../src/index.ts'
import { HotKeys } from '../src/worker/hot-keys.ts'
import { createTestDatabase } from './support/database.ts'
import type { TestDatabase } from './support/database.ts'
import { applyAll, createBlog, installed, like, outcome, pid, value } from './support/fixtures.ts'
import type { Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

async function audits({ counter }: Blog): Promise<{ lastAudit: AuditStatus | null; lastSample: AuditStatus | null }> {
  const { counters } = await tally.status()
  const found = counters.find(({ name }) => name === counter)
  return { lastAudit: found?.lastAudit ?? null, lastSample: found?.lastSample ?? null }
}

test('what the last audit of all keys has found is kept, and beside it that of a sample', async () => {
  const blog = await createBlog(db, tally)
  const counter = tally.counter(blog.counter)
  // Neither a backfill is an audit of what was counted, nor one of certain keys one of the counter, nor one against a column one with the source.
  await db.pool.query(`update ${blog.posts} set like_count = 7 where id = 3; alter table ${blog.posts} add column other bigint not null default 0`)
  await counter.audit({ keys: [3] })
  await counter.audit({ against: 'other' })
  await counter.reconcile({ keys: [4] })
  expect(await audits(blog)).toEqual({ lastAudit: null, lastSample: null })

  await counter.audit({ sample: 10 })
  expect(await audits(blog)).toEqual({ lastAudit: null, lastSample: { at: expect.any(String), checkedKeys: 10, driftingKeys: 1, corrected: false } })
  await counter.audit()
  const first = (await audits(blog)).lastAudit
  expect(first).toEqual({ at: expect.any(String), checkedKeys: 10, driftingKeys: 1, corrected: false })
  await db.pool.query(`update ${blog.posts} set like_count = 0 where id = 3`)
  await counter.audit()
  const { lastAudit, lastSample } = await audits(blog)
  expect(lastAudit).toMatchObject({ checkedKeys: 10, driftingKeys: 0 })
  expect(Date.parse(lastAudit?.at ?? '')).toBeGreaterThan(Date.parse(first?.at ?? ''))
  expect(lastSample).toMatchObject({ driftingKeys: 1 })

  await tally.dropCounter(blog.counter)
  expect(await value(db.pool, 'select count(*)::int from pgtally.last_audit a where not exists (select from pgtally.counter k where k.counter_id = a.counter_id)')).toBe(0)
})

test('a reconciliation is one that has corrected what it found, also one that was interrupted, by the library or in SQL', async () => {
  const blog = await createBlog(db, tally, { posts: 2500 })
  const counter = tally.counter(blog.counter)
  const spoil = () => db.pool.query(`update ${blog.posts} set like_count = like_count + 1 where id in (1, 2000)`)
  // Without it, all keys would be one range.
  await db.pool.query(`create index on ${blog.likes} (post_id)`)
  await spoil()
  const abort = new AbortController()
  await outcome(counter.reconcile({ signal: abort.signal, onProgress: () => abort.abort() }))
  expect(await audits(blog)).toMatchObject({ lastAudit: null })
  await counter.reconcile()
  expect(await audits(blog)).toMatchObject({ lastAudit: { checkedKeys: 2500, driftingKeys: 2, corrected: true } })
  await spoil()
  await db.pool.query(`call pgtally.reconcile('${blog.counter}')`)
  expect(await audits(blog)).toMatchObject({ lastAudit: { checkedKeys: 2500, driftingKeys: 2, corrected: true } })
  await tally.drain()
  await counter.audit()
  expect(await audits(blog)).toMatchObject({ lastAudit: { checkedKeys: 2500, driftingKeys: 0, corrected: false } })
})

test('who may only read audits as well, and nothing is kept', async () => {
  const blog = await createBlog(db, tally)
  const role = `reader_${await pid(db.pool)}`
  await db.pool.query(`create role ${role}; grant ${role} to current_user; grant usage on schema pgtally, public to ${role}; grant select on all tables in schema pgtally, public to ${role};
    grant execute on all functions in schema pgtally to ${role}`)
  const url = new URL(db.connectionString)
  const asRole = async (options: string, change: string) => {
    await db.pool.query(change)
    url.searchParams.set('options', options)
    const pool = new pg.Pool({ connectionString: url.href })
    const measurement = await createTally({ pool }).counter(blog.counter).audit().finally(() => pool.end())
    expect(measurement).toMatchObject({ checkedKeys: 10, driftingKeys: 0 })
    expect(await audits(blog)).toEqual({ lastAudit: null, lastSample: null })
  }
  await asRole(`-c role=${role}`, '')
  await asRole(`-c role=${role}`, `revoke execute on function pgtally.record_audit from ${role}`)
  await asRole('-c default_transaction_read_only=on', '')
  await db.pool.query(`drop owned by ${role}; drop role ${role}`)
})

test('a slot waits for the consumers that have not finished what is in it', async () => {
  const blog = await createBlog(db, tally)
  await tally.queue(blog.counter).register('slow')
  const waits = async () => (await tally.status()).queues.find(({ name }) => name === blog.counter)?.slotWaitsFor.flat()
  expect(await waits()).toEqual([])
  await like(db.pool, blog, 1)
  // In whichever slot; it may be two of them.
  expect(new Set(await waits())).toEqual(new Set([blog.counter, 'slow']))
  await applyAll(db.pool, blog.counter)
  expect(new Set(await waits())).toEqual(new Set(['slow']))
  const { rows } = await db.pool.query<{ batch_id: string }>(`select * from pgtally.next_batch($1, 'slow') batch_id`, [blog.counter])
  expect(new Set(await waits())).toEqual(new Set(['slow']))
  await db.pool.query('select pgtally.finish_batch($1)', [rows[0]?.batch_id])
  expect(await waits()).toEqual([])
  // Nothing of another cluster is known to be finished.
  await db.pool.query(`update pgtally.consumer set system_identifier = system_identifier + 1 where name = 'slow'`)
  expect(new Set(await waits())).toEqual(new Set(['slow']))
  await db.pool.query(`update pgtally.consumer set system_identifier = system_identifier - 1 where name = 'slow'`)
})

test('a batch names its hottest keys where it is asked to', async () => {
  const blog = await createBlog(db, tally, { source: { data: ['kind'] } })
  for (const [post, count] of [[4, 3], [5, 9], [6, 1]] as const) await like(db.pool, blog, post, count)
  await db.pool.query(`delete from ${blog.likes} where id in (select id from ${blog.likes} where post_id = 5 limit 4)`)
  const apply = async (hot: string) => (await db.pool.query<{ hot_keys: unknown }>(`select * from pgtally.apply_batch($1${hot})`, [blog.counter])).rows[0]?.hot_keys
  expect(await apply(', max_hot_keys => 2')).toEqual([['5', 13, '5'], ['4', 3, '3']])
  await like(db.pool, blog, 4)
  expect(await apply('')).toBe(null)
  expect(await apply(', max_hot_keys => 2')).toBe(null)
})

test('hot keys: of the last minute, asked for only while somebody looks', () => {
  let now = 0
  const hot = new HotKeys(() => now)
  expect(hot.perBatch).toBe(0)
  expect(hot.watch(10)).toEqual([])
  expect(hot.perBatch).toBe(20)
  hot.add('a', [['1', 5, '5'], ['2', 1, '-1']])
  hot.add('b', [['x', 3, '3']])
  now = 14_999
  expect(hot.perBatch).toBe(20)
  hot.add('a', [['2', 9, '9']])
  now = 15_001
  expect(hot.perBatch).toBe(0)
  expect(hot.watch(10)).toEqual([
    { counter: 'a', key: '2', events: 10, delta: 8 },
    { counter: 'a', key: '1', events: 5, delta: 5 },
    { counter: 'b', key: 'x', events: 3, delta: 3 },
  ])
  expect(hot.watch(1).map(({ key }) => key)).toEqual(['2', 'x'])
  now = 60_001
  expect(hot.watch(10)).toEqual([{ counter: 'a', key: '2', events: 9, delta: 9 }])
  now = 80_000
  expect(hot.watch(10)).toEqual([])
  // However many keys there are, the memory is bounded, and the hottest stay.
  for (let n = 0; n < 100_000; n++) hot.add('c', [[`key ${n % 7 === 0 ? 0 : n}`, 1, '1']])
  expect(hot.watch(1)).toEqual([{ counter: 'c', key: 'key 0', events: expect.any(Number), delta: expect.any(Number) }])
  expect(hot.watch(1_000_000).length).toBeLessThanOrEqual(1000)
})
