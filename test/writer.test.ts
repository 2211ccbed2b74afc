import { getEventListeners } from 'node:events'

import type pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { installed, outcome, pid, value, type Blog } from './support/fixtures.ts'
import { createMemberships, expectCounted, pairs, statements } from './support/memberships.ts'
import { beside } from './support/storm.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const writerOf = ({ likes }: Blog, options = {}) => tally.writer<number, number>({ table: likes, key: 'post_id', member: 'user_id', ...options })

/** Holds back every statement that writes to the likes, until it is released. */
async function hold({ likes }: Blog) {
  const client = await db.connect()
  await client.query(`begin; lock table ${likes} in exclusive mode`)
  const held = () => value<number>(db.pool, `select count(*)::int from pg_locks where relation = '${likes}'::regclass and not granted`)
  return {
    held,
    /** Resolves when so many statements wait. */
    waiting: (count: number) => waitFor(async () => (await held()) === count, { what: `${count} statements that wait` }),
    release: () => client.query('commit'),
  }
}

describe('calls', () => {
  test('say whether the row is new, or was there, after the commit; made in one turn they share a statement', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog)
    expect(await Promise.all([likes.add(1, 1), likes.add(1, 2), likes.add(2, 1), likes.remove(3, 1)])).toEqual([true, true, true, false])
    expect(await statements(db, blog, 'insert')).toEqual([3])
    expect(await pairs(db, blog)).toEqual(['1:1', '1:2', '2:1'])
    expect(await Promise.all([likes.add(1, 1), likes.add(1, 3), likes.remove(2, 1), likes.remove(2, 2), likes.add(3, 3), likes.remove(1, 2)])).toEqual([false, true, true, false, true, true])
    expect(await Promise.all([likes.add(1, 1), likes.add(1, 3)])).toEqual([false, false])
    expect(await likes.remove(1, 1)).toBe(true)
    expect(await pairs(db, blog)).toEqual(['1:3', '3:3'])
    await expectCounted(db, tally, blog)
  })

  test('made while a statement is under way go together with the next', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog, { maxGroupsInFlight: 1 })
    const lock = await hold(blog)
    const first = likes.add(1, 1)
    await lock.waiting(1)
    const others = Array.from({ length: 50 }, (_, user) => likes.add(2, user))
    await value(db.pool, 'select 1')
    others.push(...Array.from({ length: 50 }, (_, user) => likes.add(3, user)))
    await lock.release()
    expect([await first, ...(await Promise.all(others))]).toEqual(Array(101).fill(true))
    expect(await statements(db, blog, 'insert')).toEqual([1, 100])
    await expectCounted(db, tally, blog)
  })

  test('for one pair take effect in their order, whatever else is under way', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog, { maxGroupSize: 7, maxGroupsInFlight: 4 })
    const results = [1, 2, 3].map((user) => Array.from({ length: 40 }, (_, n) => (n % 4 < 2 ? likes.add(1, user) : likes.remove(1, user))))
    const others = Array.from({ length: 100 }, (_, user) => likes.add(2, user))
    for (const of of results) expect(await Promise.all(of)).toEqual(Array.from({ length: 40 }, (_, n) => n % 2 === 0))
    await Promise.all(others)
    await Promise.all([likes.add(1, 3), likes.remove(1, 2), likes.add(1, 2)])
    expect((await pairs(db, blog)).filter((pair) => pair.startsWith('1:'))).toEqual(['1:2', '1:3'])
    await expectCounted(db, tally, blog)
  })

  test('for one pair, 100 000 of them, do not take the square of that', async () => {
    // A pool that answers at once, since each of them is a statement.
    const answers = { added: 'true', removed: '[1]' }
    const column = (name: string) => ({ name, quoted: name, type: 'int8', base: 'bigint', computed: false, deterministic: true })
    const table = { name: 'likes', kind: 'r', persistence: 'p', lockable: 'true', unique: 'true', columns: JSON.stringify([column('post_id'), column('user_id')]) }
    const client = { on() {}, off() {}, release() {}, query: async () => ({ rows: [answers] }) }
    const pool = { totalCount: 1, query: async () => ({ rows: [table] }), connect: (found: (error: undefined, client: unknown) => void) => found(undefined, client) }
    const likes = createTally({ pool: pool as unknown as pg.Pool }).writer<number, number>({ table: 'likes', key: 'post_id', member: 'user_id' })
    const results = Array.from({ length: 100_000 }, (_, n) => (n % 2 === 0 ? likes.add(1, 1) : likes.remove(1, 1)))
    expect(new Set(await Promise.all(results))).toEqual(new Set([true]))
  })
})

describe('limits', () => {
  test('more calls than may wait are refused, and taken again when there is room', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog, { maxWaiting: 3, maxGroupSize: 2, maxGroupsInFlight: 1 })
    await likes.add(9, 9)
    const lock = await hold(blog)
    const first = [likes.add(1, 1), likes.add(1, 2)]
    await lock.waiting(1)
    // Waiting behind a call of the same pair is waiting, too.
    const waiting = [likes.add(1, 3), likes.remove(1, 1), likes.remove(1, 1)]
    await expect(likes.add(1, 4)).rejects.toMatchObject({ name: 'PgtallyError', code: 'WRITER_FULL', message: expect.stringMatching(new RegExp(`3 .*${blog.likes}.*maxWaiting`)) })
    await lock.release()
    expect(await Promise.all([...first, ...waiting])).toEqual([true, true, true, true, false])
    expect(await likes.add(1, 4)).toBe(true)
    expect(await pairs(db, blog)).toEqual(['1:2', '1:3', '1:4', '9:9'])
  })

  test('without a limit, all wait', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog, { maxWaiting: Number.POSITIVE_INFINITY, maxGroupSize: 1000 })
    const added = await Promise.all(Array.from({ length: 5000 }, (_, n) => likes.add(1 + (n % 10), n)))
    expect(new Set(added)).toEqual(new Set([true]))
    await expectCounted(db, tally, blog)
  })

  test('groups are no larger than allowed, and no more are under way at a time', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog, { maxGroupSize: 10, maxGroupsInFlight: 3 })
    await likes.add(10, 0)
    const lock = await hold(blog)
    const added = Array.from({ length: 95 }, (_, user) => likes.add(1, user))
    await lock.waiting(3)
    await lock.release()
    await Promise.all(added)
    expect((await statements(db, blog, 'insert')).toSorted((a, b) => b - a)).toEqual([...Array(9).fill(10), 5, 1])
  })

  test('options that will not do are refused', () => {
    for (const wrong of [{ maxGroupSize: 0 }, { maxGroupsInFlight: 1.5 }, { maxWaiting: 0 }, { table: '' }, { maxGroups: 1 }]) {
      expect(() => tally.writer({ table: 'likes', key: 'post_id', member: 'user_id', ...wrong } as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(Object.keys(wrong)[0] ?? '') }))
    }
  })
})

describe('the end', () => {
  test('flush() waits for what was called before it, and not for what comes all the time', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog, { maxGroupSize: 10 })
    await likes.flush()
    let user = 0
    const always = Array.from({ length: 50 }, () => beside(() => likes.add(1, ++user)))
    for (let round = 0; round < 5; round++) {
      const settled: unknown[] = []
      const before = Array.from({ length: 30 }, () => likes.add(2, ++user).then((added) => settled.push(added)))
      const failing = outcome(likes.add(404, ++user).finally(() => settled.push(false)))
      const flushes = [likes.flush(), likes.flush()]
      const later = likes.add(3, ++user)
      await Promise.all(flushes)
      // Which did not wait for the others to stop.
      expect(settled).toHaveLength(31)
      await Promise.all([...before, failing, later])
    }
    for (const one of always) await one.stop()
    await likes.flush()
    await expectCounted(db, tally, blog)
  })

  test('flush() waits for what an earlier one waits for, too', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = writerOf(blog)
    await likes.add(2, 0)
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for update`)
    const slow = likes.add(1, 1)
    await waitFor(async () => value<boolean>(db.pool, 'select exists (select from pg_stat_activity where $1 = any (pg_blocking_pids(pid)))', [await pid(holder)]), { what: 'the first statement' })
    const settled: string[] = []
    const first = likes.flush().then(() => settled.push('first'))
    await likes.add(2, 1)
    const second = likes.flush().then(() => settled.push('second'))
    await likes.add(2, 2)
    const third = likes.flush().then(() => settled.push('third'))
    expect(settled).toEqual([])
    await holder.query('commit')
    await Promise.all([slow, first, second, third])
  })

  test('close() waits for the calls made so far; later ones are refused', async () => {
    const blog = await createMemberships(db, tally)
    const likes = writerOf(blog, { maxGroupSize: 5 })
    const added = Array.from({ length: 23 }, (_, user) => likes.add(1, user))
    const again = likes.remove(1, 0)
    const closing = [likes.close(), likes.close()]
    await expect(likes.add(1, 100)).rejects.toMatchObject({ code: 'CLOSED', message: expect.stringContaining(blog.likes) })
    await Promise.all(closing)
    expect(await pairs(db, blog)).toHaveLength(22)
    expect([...(await Promise.all(added)), await again]).toEqual(Array(24).fill(true))
    await expect(likes.remove(1, 1)).rejects.toMatchObject({ code: 'CLOSED' })
    await likes.flush()
    let disposed: Promise<boolean>
    {
      await using other = writerOf(blog)
      disposed = other.add(2, 2)
    }
    expect(await Promise.race([disposed, 'pending'])).toBe(true)
  })

  test('an abort refuses what was not sent, and lets what is under way settle', async () => {
    const blog = await createMemberships(db, tally)
    const controller = new AbortController()
    const { signal } = controller
    const likes = writerOf(blog, { maxGroupSize: 2, maxGroupsInFlight: 1, signal })
    await likes.add(10, 10)
    const lock = await hold(blog)
    const sent = [likes.add(1, 1), likes.add(1, 2)]
    await lock.waiting(1)
    const waiting = [likes.remove(1, 1), likes.add(1, 1), likes.add(1, 3), likes.remove(1, 3), likes.add(1, 4)].map((call) => outcome(call))
    const reason = new Error('enough')
    controller.abort(reason)
    expect(await Promise.all(waiting)).toEqual(waiting.map(() => reason))
    expect(await outcome(likes.add(1, 5))).toBe(reason)
    const closing = likes.close()
    await lock.release()
    expect(await Promise.all(sent)).toEqual([true, true])
    await closing
    expect(await outcome(likes.add(1, 5))).toBe(reason)
    expect(await pairs(db, blog)).toEqual(['1:1', '1:2', '10:10'])
    expect(getEventListeners(signal, 'abort')).toEqual([])

    const late = writerOf(blog, { signal })
    expect(await outcome(late.add(1, 5))).toBe(reason)
    await late.close()
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })

  test('an abort before the table is known, and one after close()', async () => {
    const blog = await createMemberships(db, tally)
    const [first, second] = [new AbortController(), new AbortController()]
    const early = writerOf(blog, { signal: first.signal })
    const calls = [early.add(1, 1), early.add(1, 1)].map((call) => outcome(call))
    first.abort()
    expect(await Promise.all(calls)).toEqual([first.signal.reason, first.signal.reason])
    await early.close()

    const lock = await hold(blog)
    const closed = writerOf(blog, { signal: second.signal, maxGroupsInFlight: 1 })
    const sent = closed.add(1, 1)
    await lock.waiting(1)
    const waiting = outcome(closed.add(1, 2))
    const closing = closed.close()
    second.abort()
    expect(await waiting).toBe(second.signal.reason)
    await lock.release()
    await closing
    expect(await sent).toBe(true)
  })

  test('nothing is left of many writers with one signal', async () => {
    const blog = await createMemberships(db, tally)
    const { signal } = new AbortController()
    for (let n = 0; n < 20; n++) {
      await using likes = writerOf(blog, { signal })
      await likes.add(1, n)
    }
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })
})
