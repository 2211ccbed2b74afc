import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, applyAll, blocked, createBlog, installed, like, outcome, pid, statusOf, stored, value, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const applyCarried = (counter: string) => value<string | null>(db.pool, 'select last_key from pgtally.apply_carried($1)', [counter])

/** A session that holds the rows of these posts, in a way that new likes of them do not wait for. */
async function lockPosts({ posts }: Blog, ids: number[]) {
  const client = await db.connect()
  await client.query('begin')
  await client.query(`select from ${posts} where id = any ($1) for no key update`, [ids])
  return client
}

describe('creating a counter', () => {
  test('counts what is there already, and corrects what is stored', async () => {
    await db.pool.query(`
      create table old_posts (id bigint primary key, like_count integer);
      create table old_likes (post_id bigint);
      insert into old_posts values (1, null), (2, 7), (3, 5), (4, 0);
      insert into old_likes select 1 from generate_series(1, 3) union all select 2 union all select 4;`)
    await tally.createCounter('old', { source: { table: 'old_likes', key: 'post_id' }, target: { table: 'old_posts', key: 'id', column: 'like_count' } })
    expect(await violations(db, 'old')).toEqual([])
    expect(await applyCarried('old')).toBeNull()
    expect(await stored(db.pool, { counter: 'old', posts: 'old_posts', likes: 'old_likes' })).toEqual({ 1: 3, 2: 1, 4: 1 })
    expect(await violations(db, 'old')).toEqual([])
  })

  test('is exact with writers at work, one of them in an open transaction', async () => {
    await db.pool.query('create table busy_posts (id bigint primary key, like_count bigint not null default 0); insert into busy_posts select generate_series(1, 3); create table busy_likes (post_id bigint)')
    const blog = { counter: 'busy', posts: 'busy_posts', likes: 'busy_likes' }
    const open = await db.connect()
    await open.query('begin isolation level repeatable read')
    await like(open, blog, 1)
    const finished = new AbortController()
    const writers = Array.from({ length: 3 }, async (_, n) => {
      while (!finished.signal.aborted) await like(db.pool, blog, n + 1)
    })
    const created = tally.createCounter('busy', { source: { table: 'busy_likes', key: 'post_id' }, target: { table: 'busy_posts', key: 'id', column: 'like_count' } })
    // It asks for the lock briefly, gives up, and asks again: the open transaction outlives at least one attempt.
    await waitFor(async () => value<boolean>(db.pool, `select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%create_counter%' and datname = current_database())`), { what: 'create_counter to wait' })
    await like(open, blog, 2)
    await open.query('commit')
    expect(await created).toBe(true)
    finished.abort()
    await Promise.all(writers)
    expect(await violations(db, 'busy')).toEqual([])
    await applyAll(db.pool, 'busy')
    await applyCarried('busy')
    expect(await violations(db, 'busy')).toEqual([])
    expect((await statusOf(db.pool, 'busy')).carried_keys).toBe('0')
  })

  test('twenty at once, of one definition, make one', async () => {
    await db.pool.query('create table raced_likes (post_id bigint)')
    const created = await Promise.all(Array.from({ length: 20 }, () => tally.createCounter('raced', { source: { table: 'raced_likes', key: 'post_id', where: 'post_id > 3' } })))
    expect(created.filter(Boolean)).toHaveLength(1)
  })

  test('a second counter may follow the queue of the first, at its own pace', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 2)
    await applyAll(db.pool, blog.counter)
    await tally.createCounter('follower', { queue: blog.counter })
    await like(db.pool, blog, 1)
    await applyAll(db.pool, 'follower')
    await applyCarried('follower')
    expect(await tally.counter('follower').get(1)).toBe(3)
    expect(await stored(db.pool, blog)).toEqual({ 1: 2 })
    await tally.dropCounter(blog.counter)
    await like(db.pool, blog, 1)
    await applyAll(db.pool, 'follower')
    expect(await tally.counter('follower').get(1)).toBe(4)
    await tally.dropCounter('follower')
    expect(await value(db.pool, 'select count(*)::int from pg_trigger where tgrelid = $1::regclass and not tgisinternal', [blog.likes])).toBe(0)
  })

  test('the initial count waits for an ACCESS EXCLUSIVE lock as for any other', async () => {
    await db.pool.query('create table altered_likes (post_id bigint, kind text)')
    const open = await db.connect()
    await open.query('begin; lock table altered_likes in access exclusive mode')
    const created = outcome(tally.createCounter('altered', { source: { table: 'altered_likes', key: 'post_id', where: `kind = 'like'` } }))
    // Longer than one attempt: once it has waited, once it has given up.
    await waitFor(async () => value<boolean>(db.pool, `select exists (select from pg_locks where not granted and relation = 'altered_likes'::regclass)`), { what: 'the wait' })
    await waitFor(async () => value<boolean>(db.pool, `select not exists (select from pg_locks where not granted and relation = 'altered_likes'::regclass)`), { what: 'the end of the wait' })
    await open.query('commit')
    expect(await created).toBe('done')
  })

  test('two counters cannot share one target column: both would add to it', async () => {
    const blog = await createBlog(db, tally)
    const again = await outcome(tally.createCounter(`${blog.counter} renamed`, { source: { table: blog.likes, key: 'post_id' }, target: { table: blog.posts, key: 'id', column: 'like_count' } }))
    await like(db.pool, blog, 1)
    for (const counter of [blog.counter, ...(again === 'done' ? [`${blog.counter} renamed`] : [])]) await applyAll(db.pool, counter)
    expect(await stored(db.pool, blog)).toEqual({ 1: 1 })
    expect(again).toMatchObject({ message: expect.stringContaining(blog.counter) })
  })
})

describe('a locked row', () => {
  test('is not waited for: others are added, it is carried, and added afterwards', async () => {
    const blog = await createBlog(db, tally)
    const holder = await lockPosts(blog, [1])
    for (const post of [1, 2, 3]) await like(db.pool, blog, post, 2)
    await db.pool.query(`delete from ${blog.likes} where id in (select min(id) from ${blog.likes} where post_id = 1)`)
    expect(await apply(db.pool, blog.counter)).toMatchObject({ events: '4', keys: 3, carried: 1 })
    expect(await violations(db, blog.counter)).toEqual([])
    expect(await stored(db.pool, blog)).toEqual({ 2: 2, 3: 2 })
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: '1', pending_events: '0' })
    await like(db.pool, blog, 1)
    await apply(db.pool, blog.counter)
    expect(await applyCarried(blog.counter)).toBeNull()
    expect(await violations(db, blog.counter)).toEqual([])
    await holder.query('rollback')
    await like(db.pool, blog, 1)
    expect(await apply(db.pool, blog.counter)).toMatchObject({ carried: 0 })
    expect(await stored(db.pool, blog)).toEqual({ 1: 3, 2: 2, 3: 2 })
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: '0' })
    expect(await violations(db, blog.counter)).toEqual([])
  })

  test('is added by apply_carried when no more events come', async () => {
    const blog = await createBlog(db, tally)
    const holder = await lockPosts(blog, [1, 2])
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 2)
    await like(db.pool, blog, 3)
    await apply(db.pool, blog.counter)
    await holder.query('commit')
    expect(await value(db.pool, 'select last_key from pgtally.apply_carried($1, null, 1)', [blog.counter])).toBe('1')
    expect(await value(db.pool, `select last_key from pgtally.apply_carried($1, '1', 1)`, [blog.counter])).toBe('2')
    expect(await value(db.pool, `select last_key from pgtally.apply_carried($1, '2', 1)`, [blog.counter])).toBeNull()
    expect(await stored(db.pool, blog)).toEqual({ 1: 1, 2: 1, 3: 1 })
  })

  test('locked by a foreign key check only, is added at once', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1)
    const open = await db.connect()
    await open.query('begin')
    await like(open, blog, 1)
    expect(await apply(db.pool, blog.counter)).toMatchObject({ carried: 0 })
    await open.query('rollback')
  })

  test('that is nearly always locked gets its turn', async () => {
    const blog = await createBlog(db, tally)
    const finished = new AbortController()
    const update = `update ${blog.posts} set title = 'x' where id = 1`
    // Each stands in line before the other commits, so there is never a moment at which nobody has it.
    let [holder, waiter] = [await db.connect(), await db.connect()]
    let [holderPid, waiterPid] = [await pid(holder), await pid(waiter)]
    await holder.query(`begin; ${update}`)
    await like(db.pool, blog, 1)
    await apply(db.pool, blog.counter)
    expect(await applyCarried(blog.counter)).toBeNull()
    expect(await stored(db.pool, blog)).toEqual({})
    const locker = (async () => {
      while (!finished.signal.aborted) {
        await waiter.query('begin')
        const waiting = waiter.query(update)
        await blocked(db, waiterPid)
        await holder.query('commit')
        await waiting
        ;[holder, waiter, holderPid, waiterPid] = [waiter, holder, waiterPid, holderPid]
      }
      await holder.query('commit')
    })()
    await waitFor(async () => value<boolean>(db.pool, `select added from pgtally.wait_for_carried($1, interval '0')`, [blog.counter]), { what: 'the turn' })
    finished.abort()
    await locker
    expect(await stored(db.pool, blog)).toEqual({ 1: 1 })
    expect(await violations(db, blog.counter)).toEqual([])
  })

  test('batches go on while a row is waited for', async () => {
    const blog = await createBlog(db, tally)
    const holder = await lockPosts(blog, [1])
    await like(db.pool, blog, 1)
    await apply(db.pool, blog.counter)
    const waiter = await db.connect()
    const waiterPid = await pid(waiter)
    const waiting = value<boolean>(waiter, `select added from pgtally.wait_for_carried($1, interval '0', interval '20 seconds')`, [blog.counter])
    await blocked(db, waiterPid)
    await like(db.pool, blog, 2)
    await like(db.pool, blog, 1)
    expect(await apply(db.pool, blog.counter)).toMatchObject({ busy: false, carried: 1 })
    expect(await violations(db, blog.counter)).toEqual([])
    await holder.query('commit')
    expect(await waiting).toBe(true)
    expect(await stored(db.pool, blog)).toEqual({ 1: 2, 2: 1 })
    expect(await violations(db, blog.counter)).toEqual([])
  })

  test('that goes while its count is carried takes it along', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 3)
    const deleter = await db.connect()
    await deleter.query('begin')
    await deleter.query(`delete from ${blog.posts} where id = 1`)
    expect(await apply(db.pool, blog.counter)).toMatchObject({ carried: 1 })
    await deleter.query('commit')
    await applyAll(db.pool, blog.counter)
    await applyCarried(blog.counter)
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: '0', pending_events: '0', dropped_events: '2' })
    expect(await stored(db.pool, blog)).toEqual({})
  })

  test('that is gone is not waited for, and left to who has the consumer', async () => {
    const blog = await createBlog(db, tally)
    await db.pool.query(`alter table ${blog.likes} drop constraint ${blog.likes}_post_id_fkey`)
    const deleter = await lockPosts(blog, [1])
    await like(db.pool, blog, 1)
    await apply(db.pool, blog.counter)
    await deleter.query(`delete from ${blog.posts} where id = 1`)
    await deleter.query('commit')
    await like(db.pool, blog, 1)
    // A worker in the middle of apply_batch(): it has the consumer, and comes to the carry next.
    const batch = await db.connect()
    await batch.query('begin')
    await batch.query('select pgtally.lock_counter($1)', [blog.counter])
    expect(await value(db.pool, `select added from pgtally.wait_for_carried($1, interval '0')`, [blog.counter])).toBe(false)
    await apply(batch, blog.counter)
    await batch.query('commit')
    await applyCarried(blog.counter)
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: '0', pending_events: '0', dropped_events: '2' })
  })

  test('that was waited for is added while a batch is in hand, also where one has failed before', async () => {
    const blog = await createBlog(db, tally)
    const holder = await lockPosts(blog, [1])
    await like(db.pool, blog, 1)
    await apply(db.pool, blog.counter)
    await holder.query('commit')
    await db.pool.query(`update pgtally.consumer set last_error = 'no such luck', last_error_at = now() where name = $1`, [blog.counter])
    const batch = await db.connect()
    await batch.query('begin')
    await batch.query('select pgtally.lock_counter($1)', [blog.counter])
    expect(await value(db.pool, `select added from pgtally.wait_for_carried($1, interval '0')`, [blog.counter])).toBe(true)
    await batch.query('commit')
    await like(db.pool, blog, 2)
    await apply(db.pool, blog.counter)
    expect(await value(db.pool, 'select last_error from pgtally.consumer where name = $1', [blog.counter])).toBeNull()
    expect(await stored(db.pool, blog)).toEqual({ 1: 1, 2: 1 })
  })
})

describe('a key without a row', () => {
  const target = (column = 'like_count') => ({ table: 'missing_posts', key: 'id', column })

  test('drop: is counted as dropped', async () => {
    const blog = await createBlog(db, tally, { posts: 1 })
    await db.pool.query(`alter table ${blog.likes} drop constraint ${blog.likes}_post_id_fkey`)
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 99)
    await like(db.pool, blog, 99)
    await applyAll(db.pool, blog.counter)
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ dropped_events: '2', carried_keys: '0' })
  })

  test('error: nothing is applied until it has one', async () => {
    const blog = await createBlog(db, tally, { posts: 1, rest: { onMissing: 'error' } })
    await db.pool.query(`alter table ${blog.likes} drop constraint ${blog.likes}_post_id_fkey`)
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 99)
    await expect(apply(db.pool, blog.counter)).rejects.toMatchObject({ code: 'TL008', message: expect.stringContaining('99') })
    expect(await stored(db.pool, blog)).toEqual({})
    await db.pool.query(`insert into ${blog.posts} (id) values (99)`)
    await applyAll(db.pool, blog.counter)
    expect(await stored(db.pool, blog)).toEqual({ 1: 1, 99: 1 })
  })

  test('insert: a row that the application is inserting is carried, and the others are not held up', async () => {
    await db.pool.query('create table missing_posts (id bigint primary key, like_count bigint not null default 0); create table missing_likes (post_id bigint)')
    await tally.createCounter('missing', { source: { table: 'missing_likes', key: 'post_id' }, target: target(), onMissing: 'insert' })
    const blog = { counter: 'missing', posts: 'missing_posts', likes: 'missing_likes' }
    const open = await db.connect()
    await open.query('begin')
    await open.query('insert into missing_posts values (1, 0)')
    await db.pool.query('insert into missing_likes select n from generate_series(1, 5) n')
    await apply(db.pool, 'missing')
    expect(await violations(db, 'missing')).toEqual([])
    await applyCarried('missing')
    expect(await stored(db.pool, blog)).toEqual({ 2: 1, 3: 1, 4: 1, 5: 1 })
    expect(await statusOf(db.pool, 'missing')).toMatchObject({ carried_keys: '1' })
    await open.query('commit')
    await applyCarried('missing')
    expect(await stored(db.pool, blog)).toEqual({ 1: 1, 2: 1, 3: 1, 4: 1, 5: 1 })
    expect(await violations(db, 'missing')).toEqual([])
  })

  test('insert: what is carried keeps its age while it is tried again', async () => {
    await db.pool.query('create table aged_posts (id bigint primary key, like_count bigint not null default 0); create table aged_likes (post_id bigint)')
    await tally.createCounter('aged', { source: { table: 'aged_likes', key: 'post_id' }, target: { table: 'aged_posts', key: 'id', column: 'like_count' }, onMissing: 'insert' })
    const open = await db.connect()
    await open.query('begin; insert into aged_posts values (1, 0)')
    await db.pool.query('insert into aged_likes values (1)')
    await apply(db.pool, 'aged')
    const carry = `pgtally.carry_${await value<number>(db.pool, `select counter_id from pgtally.counter where name = 'aged'`)}`
    const since = await value<string>(db.pool, `select since::text from ${carry}`)
    await applyCarried('aged')
    expect(await value(db.pool, `select since::text from ${carry}`)).toBe(since)
    await open.query('rollback')
  })
})

describe('what the target objects to', () => {
  test('an int4 overflow: nothing is applied or lost, mended it goes on', async () => {
    const blog = await createBlog(db, tally, { countColumn: 'like_count integer not null default 0' })
    await db.pool.query(`update ${blog.posts} set like_count = 2147483647 where id = 1`)
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 2)
    await expect(apply(db.pool, blog.counter)).rejects.toMatchObject({ code: '22003' })
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ pending_events: '2' })
    await db.pool.query(`alter table ${blog.posts} alter like_count type bigint`)
    await apply(db.pool, blog.counter)
    expect(await stored(db.pool, blog)).toEqual({ 1: 2147483648, 2: 1 })
  })

  test('a CHECK that a cut batch runs into passes uncut', async () => {
    const blog = await createBlog(db, tally, { countColumn: 'like_count bigint not null default 0 check (like_count >= 0)' })
    const inserter = await db.connect()
    // The delete's transaction is given the lower id.
    await inserter.query('begin isolation level read committed; select pg_current_xact_id()')
    await like(db.pool, blog, 1, 2)
    await inserter.query(`delete from ${blog.likes} where post_id = 1`)
    await inserter.query('commit')
    await expect(apply(db.pool, blog.counter, 1)).rejects.toMatchObject({ code: '23514' })
    expect(await violations(db, blog.counter)).toEqual([])
    await apply(db.pool, blog.counter, null)
    expect(await stored(db.pool, blog)).toEqual({})
    expect((await statusOf(db.pool, blog.counter)).pending_events).toBe('0')
  })

  test('a trigger of the target that names its tables without a schema works as for the application', async () => {
    const blog = await createBlog(db, tally)
    await db.pool.query(`
      create table ${blog.posts}_log (id bigint);
      create function ${blog.posts}_log() returns trigger language plpgsql as 'begin insert into ${blog.posts}_log values (new.id); return new; end';
      create trigger log after update on ${blog.posts} for each row execute function ${blog.posts}_log()`)
    await like(db.pool, blog, 1)
    await apply(db.pool, blog.counter)
    expect(await stored(db.pool, blog)).toEqual({ 1: 1 })
    expect(await value(db.pool, `select count(*)::int from ${blog.posts}_log`)).toBe(1)
  })
})

test('a cut or uncut batch says so', async () => {
  const blog = await createBlog(db, tally)
  const bulk = await db.connect()
  await bulk.query('begin')
  for (let n = 0; n < 5; n++) await like(bulk, blog, 1)
  await bulk.query('commit')
  expect(await apply(db.pool, blog.counter, 2)).toMatchObject({ events: '5', cut: false })
  await like(db.pool, blog, 1)
  await like(db.pool, blog, 1)
  await like(db.pool, blog, 1)
  expect(await apply(db.pool, blog.counter, 2)).toMatchObject({ events: '2', cut: true })
  expect(await apply(db.pool, blog.counter, 2)).toMatchObject({ events: '1', cut: false })
  expect(await apply(db.pool, blog.counter, 2)).toMatchObject({ events: null, cut: false })
})

test('of another cluster: refused and told to a poller, nothing is emptied, the others go on', async () => {
  const [blog, other] = [await createBlog(db, tally, { rest: { rotationPeriodMs: 1000 } }), await createBlog(db, tally)]
  // As after a restore into a younger cluster: the position is far ahead of all ids that are given out here.
  await db.pool.query(
    `with moved as (update pgtally.consumer set system_identifier = system_identifier + 1 where queue_id = pgtally.queue_id($1) returning consumer_id)
    update pgtally.batch b set start_boundary = '9000000000:9000000000:', end_boundary = '9000000000:9000000000:', finished_at = now() - interval '1 hour'
    from moved where b.consumer_id = moved.consumer_id`,
    [blog.counter],
  )
  await like(db.pool, blog, 1)
  await like(db.pool, other, 1)
  await expect(apply(db.pool, blog.counter)).rejects.toMatchObject({ code: 'TL005', message: expect.stringContaining(blog.counter) })
  expect(await stored(db.pool, blog)).toEqual({})
  await applyAll(db.pool, other.counter)
  expect(await stored(db.pool, other)).toEqual({ 1: 1 })
  const queue = await value<number>(db.pool, 'select pgtally.queue_id($1)', [blog.counter])
  await waitFor(async () => value<boolean>(db.pool, `select ev_slot <> pgtally.slot_at(clock_timestamp(), '1 second') from pgtally.event_${queue}`), { what: 'the next slot' })
  await value(db.pool, 'select pgtally.rotate($1)', [blog.counter])
  expect(await value(db.pool, `select count(*)::int from pgtally.event_${queue}`)).toBe(1)
  expect(await value(db.pool, 'select name from pgtally.due_counters() where name = $1', [blog.counter])).toBe(blog.counter)
  expect(await statusOf(db.pool, blog.counter)).toMatchObject({ pending_events: '1' })
})
