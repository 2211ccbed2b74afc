import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { column, createBlog, installed, statusOf, stored, value, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const posts = 1000

/** A like for each post, in a batch that adds to 300 of them at once and packs the others. */
async function applyInPart(blog: Blog): Promise<void> {
  await likeAll(blog)
  const { rows } = await db.pool.query('select * from pgtally.apply_batch($1, max_keys => 300)', [blog.counter])
  expect(rows).toMatchObject([{ keys: posts, carried: posts - 300, packed: posts - 300 }])
}

const likeAll = ({ likes, posts: table }: Blog) => db.pool.query(`insert into ${likes} (post_id) select id from ${table}`)
const applyPacked = ({ counter }: Blog, maxKeys = 200) => value<number | null>(db.pool, 'select keys from pgtally.apply_packed($1, $2)', [counter, maxKeys])
const total = async (blog: Blog) => Object.values(await stored(db.pool, blog)).reduce((sum, count) => sum + count, 0)

describe('a batch of more keys than are locked at once', () => {
  test('is added in several transactions, exact after each', async () => {
    const blog = await createBlog(db, tally, { posts })
    await applyInPart(blog)
    for (let added = 300; added < posts; added += 200) {
      expect(await total(blog)).toBe(added)
      expect(await violations(db, blog.counter)).toEqual([])
      expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: String(posts - added), pending_events: '0' })
      expect(await applyPacked(blog)).toBe(Math.min(200, posts - added))
    }
    expect(await applyPacked(blog)).toBeNull()
    expect(await total(blog)).toBe(posts)
    expect(await violations(db, blog.counter)).toEqual([])
    expect(await tally.counter(blog.counter).audit()).toMatchObject({ checkedKeys: posts, driftingKeys: 0, drifts: [] })
  })

  test('locks no others until it commits', async () => {
    const blog = await createBlog(db, tally, { posts })
    await likeAll(blog)
    const applier = await db.connect()
    await applier.query('begin')
    await applier.query('select pgtally.apply_batch($1, max_keys => 300)', [blog.counter])
    const free = `select count(*)::int from (select from ${blog.posts} for no key update skip locked) free`
    expect(await value(db.pool, free)).toBe(posts - 300)
    await applier.query('commit')
    await applier.query('begin')
    await applier.query('select pgtally.apply_packed($1, 100)', [blog.counter])
    expect(await value(db.pool, free)).toBe(posts - 100)
    await applier.query('rollback')
    expect(await total(blog)).toBe(300)
    expect(await violations(db, blog.counter)).toEqual([])
  })

  test('is included in fresh counts, audits and waits meanwhile', async () => {
    const blog = await createBlog(db, tally, { posts })
    const counter = tally.counter<number>(blog.counter)
    const client = await db.connect()
    await client.query('begin')
    await client.query(`insert into ${blog.likes} (post_id) select id from ${blog.posts}`)
    const token = await value<string>(client, 'select pg_current_xact_id()::text')
    await client.query('commit')
    await db.pool.query('select pgtally.apply_batch($1, max_keys => 300)', [blog.counter])
    const packed = Number(await value<string>(db.pool, `select id from ${blog.posts} where like_count = 0 limit 1`))
    const added = Number(await value<string>(db.pool, `select id from ${blog.posts} where like_count = 1 limit 1`))
    expect(await counter.get(packed, { fresh: true })).toEqual({ count: 1, stored: 0, carried: 1, pending: 0 })
    expect(await counter.get(added, { fresh: true })).toEqual({ count: 1, stored: 1, carried: 0, pending: 0 })
    expect(await counter.audit()).toMatchObject({ checkedKeys: posts, driftingKeys: 0, drifts: [] })
    const isStored = (key: number | null) => value<boolean>(db.pool, 'select pgtally.is_stored($1, $2::text::xid8, $3::text)', [blog.counter, token, key])
    expect([await isStored(packed), await isStored(added), await isStored(null)]).toEqual([false, true, false])
    await tally.drain()
    expect([await isStored(packed), await isStored(added), await isStored(null)]).toEqual([true, true, true])
  })

  test('leaves a row that is locked then to be carried by itself, and counts what has no row', async () => {
    const blog = await createBlog(db, tally, { posts })
    await applyInPart(blog)
    const [locked, deleted] = await column<string>(db.pool, `select id from ${blog.posts} where like_count = 0 limit 2`)
    const holder = await db.connect()
    await holder.query('begin')
    await holder.query(`select from ${blog.posts} where id = $1 for no key update`, [locked])
    await db.pool.query(`delete from ${blog.posts} where id = $1`, [deleted])
    await applyPacked(blog, posts)
    expect(await column(db.pool, `select key from pgtally.carried_${await counterId(blog)}`)).toEqual([locked])
    // The batch had one event for the deleted row, and the deletion of its like is still pending.
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: '1', dropped_events: '1', pending_events: '1' })
    expect(await violations(db, blog.counter)).toEqual([])
    await holder.query('commit')
    await tally.drain()
    expect(await stored(db.pool, blog)).toMatchObject({ [locked ?? '']: 1 })
    expect(await violations(db, blog.counter)).toEqual([])
  })

  test('of several batches with the same keys is summed', async () => {
    const blog = await createBlog(db, tally, { posts })
    await applyInPart(blog)
    await applyInPart(blog)
    await applyInPart(blog)
    expect(await violations(db, blog.counter)).toEqual([])
    await applyPacked(blog, 100_000)
    expect(await total(blog)).toBe(3 * posts)
    expect(await violations(db, blog.counter)).toEqual([])
  })

  test('is left to the other worker that has the counter', async () => {
    const blog = await createBlog(db, tally, { posts })
    await applyInPart(blog)
    const other = await db.connect()
    await other.query('begin')
    await other.query('select pgtally.apply_packed($1, 100)', [blog.counter])
    expect(await applyPacked(blog)).toBeNull()
    await other.query('commit')
    expect(await total(blog)).toBe(400)
  })

  test("does not come about in pgtally's own table, whose rows nobody else locks", async () => {
    await tally.createCounter('own_packed', {})
    await db.pool.query(`select pgtally.add_event('own_packed', n::text) from generate_series(1, 500) n`)
    expect((await db.pool.query(`select * from pgtally.apply_batch('own_packed', max_keys => 100)`)).rows).toMatchObject([{ keys: 500, carried: 0, packed: 0 }])
  })

  test('that was interrupted is finished by the next worker', async () => {
    const blog = await createBlog(db, tally, { posts })
    await applyInPart(blog)
    await using worker = tally.worker()
    void worker
    await expect.poll(() => total(blog), { timeout: 60_000 }).toBe(posts)
  })
})

test('where a row takes long, the next transactions lock fewer', async () => {
  const blog = await createBlog(db, tally, { posts: 150 })
  await db.pool.query(`
    create function slow_${blog.counter}() returns trigger language plpgsql as 'begin perform pg_sleep(0.005); return new; end';
    create trigger slow before update on ${blog.posts} for each row execute function slow_${blog.counter}()`)
  const transactions = () => value<number>(db.pool, `select count(distinct xmin::text)::int from ${blog.posts}`)
  await using worker = tally.worker()
  void worker
  await likeAll(blog)
  await expect.poll(() => total(blog), { timeout: 60_000 }).toBe(150)
  expect(await transactions()).toBe(1)
  await likeAll(blog)
  await expect.poll(() => total(blog), { timeout: 60_000 }).toBe(300)
  expect(await transactions()).toBe(2)
})

test('a row at fault fails its own transaction only, and is said', async () => {
  const blog = await createBlog(db, tally, { posts, countColumn: 'like_count smallint not null default 0' })
  await db.pool.query(`update ${blog.posts} set like_count = 32767 where id = $1`, [posts])
  await applyInPart(blog)
  await expect(db.pool.query('select pgtally.apply_packed($1, $2)', [blog.counter, posts])).rejects.toMatchObject({ code: '22003' })
  expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: String(posts - 300) })
})

const counterId = ({ counter }: Blog) => value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])
