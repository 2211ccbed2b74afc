import { setTimeout as sleep } from 'node:timers/promises'

import { Kysely, PostgresDialect } from 'kysely'
import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, applyAll, createBlog, installed, like, outcome, statusOf, stored, value, type Blog, type Session } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const handle = ({ counter }: Blog) => tally.counter<number>(counter)
const isStored = ({ counter }: Blog, token: string, key: number | null = null) => value<boolean>(db.pool, 'select pgtally.is_stored($1, $2::text::xid8, $3::text)', [counter, token, key])

/** Runs `work` in a transaction of its own and returns that one's token. */
async function transaction(work: (session: Session) => Promise<unknown>): Promise<string> {
  const client = await db.pool.connect()
  try {
    await client.query('begin')
    await work(client)
    const token = await tally.transactionToken(client)
    await client.query('commit')
    return token
  } finally {
    client.release()
  }
}

/** A promise, and whether it has settled by now. */
function watch(promise: Promise<unknown>): { settled: boolean; outcome: Promise<'done' | Error> } {
  const watched = { settled: false, outcome: outcome(promise) }
  void watched.outcome.then(() => (watched.settled = true))
  return watched
}

describe('with a worker, whoever has waited reads what was written', () => {
  test('from the row, again and again, among many who like the same posts', async () => {
    const blog = await createBlog(db, tally)
    await using worker = tally.worker({ pollIntervalMs: 5 })
    const readers = Array.from({ length: 4 }, async (_, reader) => {
      const own = reader + 1
      for (let i = 1; i <= 40; i++) {
        const token = await transaction(async (session) => {
          await like(session, blog, own)
          await like(session, blog, 9, 2)
        })
        await handle(blog).waitFor(token, i % 2 === 0 ? {} : { key: own })
        expect((await stored(db.pool, blog))[own]).toBe(i)
        await handle(blog).waitFor(token, { key: 9 })
        expect(await handle(blog).get(9)).toBeGreaterThanOrEqual(2 * i)
      }
    })
    await Promise.all(readers)
    expect(await stored(db.pool, blog)).toEqual({ 1: 40, 2: 40, 3: 40, 4: 40, 9: 320 })
    await worker.stop()
  })

  test('from pgtally\'s own table, with the token of add()', async () => {
    await tally.createCounter('added', { keyType: 'text' })
    const counter = tally.counter<string>('added')
    await using worker = tally.worker({ pollIntervalMs: 5 })
    for (let i = 1; i <= 40; i++) {
      await counter.waitFor(await counter.add(db.pool, 'page', 3), { key: 'page' })
      expect(await counter.get('page')).toBe(3 * i)
    }
    await worker.stop()
  })

  test('of counters that follow one queue, each for itself', async () => {
    const blog = await createBlog(db, tally)
    await tally.createCounter('follower', { queue: blog.counter })
    const token = await transaction((session) => like(session, blog, 1))
    await applyAll(db.pool, blog.counter)
    expect(await isStored(blog, token)).toBe(true)
    expect(await isStored({ ...blog, counter: 'follower' }, token)).toBe(false)
    await applyAll(db.pool, 'follower')
    expect(await isStored({ ...blog, counter: 'follower' }, token)).toBe(true)
  })
})

describe('a locked row', () => {
  test('is waited for by those who ask for it or for all, and not by those who ask for another', async () => {
    const blog = await createBlog(db, tally)
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for no key update`)
    await using worker = tally.worker({ pollIntervalMs: 5 })
    const token = await transaction(async (session) => {
      await like(session, blog, 1)
      await like(session, blog, 2)
    })
    const [locked, all] = [watch(handle(blog).waitFor(token, { key: 1 })), watch(handle(blog).waitFor(token))]
    await handle(blog).waitFor(token, { key: 2 })
    expect(await stored(db.pool, blog)).toEqual({ 2: 1 })
    await handle(blog).waitFor(token, { key: 3 })
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ pending_events: '0', carried_keys: '1' })
    expect([await isStored(blog, token, 1), await isStored(blog, token), await isStored(blog, token, 2)]).toEqual([false, false, true])
    // Later batches do not make it forget.
    await handle(blog).waitFor(await transaction((session) => like(session, blog, 2)), { key: 2 })
    expect([await isStored(blog, token, 1), locked.settled, all.settled]).toEqual([false, false, false])
    await holder.query('commit')
    expect([await locked.outcome, await all.outcome]).toEqual(['done', 'done'])
    expect(await stored(db.pool, blog)).toEqual({ 1: 1, 2: 2 })
    await worker.stop()
  })

  test('of a later transaction is not waited for', async () => {
    const blog = await createBlog(db, tally)
    const early = await transaction((session) => like(session, blog, 1))
    await applyAll(db.pool, blog.counter)
    expect(await isStored(blog, early, 1)).toBe(true)
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for no key update`)
    const late = await transaction((session) => like(session, blog, 1))
    await applyAll(db.pool, blog.counter)
    expect(await statusOf(db.pool, blog.counter)).toMatchObject({ carried_keys: '1' })
    expect([await isStored(blog, early), await isStored(blog, early, 1), await isStored(blog, late, 1)]).toEqual([true, true, false])
    await handle(blog).waitFor(early, { key: 1 })
    await holder.query('commit')
    await value(db.pool, 'select pgtally.apply_carried($1)', [blog.counter])
    await handle(blog).waitFor(late, { key: 1 })
    expect(await stored(db.pool, blog)).toEqual({ 1: 2 })
  })
})

describe('what a token may stand for', () => {
  test('a transaction that is still pending, though later ones were applied', async () => {
    const blog = await createBlog(db, tally)
    const early = await db.connect()
    await early.query('begin')
    await like(early, blog, 1)
    const token = await tally.transactionToken(early)
    const later = await transaction((session) => like(session, blog, 1))
    await applyAll(db.pool, blog.counter)
    expect([await isStored(blog, token), await isStored(blog, later)]).toEqual([false, true])
    await early.query('commit')
    expect([await isStored(blog, token), await isStored(blog, token, 1), await isStored(blog, later)]).toEqual([false, false, true])
    await applyAll(db.pool, blog.counter)
    expect(await isStored(blog, token)).toBe(true)
    expect(await stored(db.pool, blog)).toEqual({ 1: 2 })
  })

  test('a transaction beyond the cut of a long backlog', async () => {
    const blog = await createBlog(db, tally)
    const tokens: string[] = []
    for (let post = 1; post <= 5; post++) tokens.push(await transaction((session) => like(session, blog, post)))
    for (let post = 1; post <= 5; post++) {
      await apply(db.pool, blog.counter, 1)
      const counts = await stored(db.pool, blog)
      for (const [index, token] of tokens.entries()) {
        expect(await isStored(blog, token)).toBe(counts[index + 1] === 1)
        expect(await isStored(blog, token, index + 1)).toBe(counts[index + 1] === 1)
      }
    }
    expect(Object.keys(await stored(db.pool, blog))).toHaveLength(5)
  })

  test('one that is in progress is waited for, also when it goes on with savepoints', async () => {
    const blog = await createBlog(db, tally)
    const client = await db.connect()
    await client.query('begin')
    await like(client, blog, 1)
    const token = await tally.transactionToken(client)
    await using worker = tally.worker({ pollIntervalMs: 5 })
    const waiting = watch(handle(blog).waitFor(token, { key: 1 }))
    await client.query('savepoint s')
    await like(client, blog, 1)
    expect(await tally.transactionToken(client)).toBe(token)
    await handle(blog).waitFor(await transaction((session) => like(session, blog, 2)))
    expect([await isStored(blog, token, 1), waiting.settled]).toEqual([false, false])
    await client.query('commit')
    expect(await waiting.outcome).toBe('done')
    expect(await stored(db.pool, blog)).toEqual({ 1: 2, 2: 1 })
    await worker.stop()
  })

  for (const ending of ['commit', 'rollback']) {
    test(`one that is prepared is waited for until ${ending} prepared`, async () => {
      const blog = await createBlog(db, tally)
      const client = await db.connect()
      await client.query('begin')
      await like(client, blog, 1)
      const token = await tally.transactionToken(client)
      await client.query(`prepare transaction '${blog.counter}'`)
      await using worker = tally.worker({ pollIntervalMs: 5 })
      const waiting = watch(handle(blog).waitFor(token))
      await handle(blog).waitFor(await transaction((session) => like(session, blog, 2)))
      expect([await isStored(blog, token), waiting.settled]).toEqual([false, false])
      await client.query(`${ending} prepared '${blog.counter}'`)
      expect(await waiting.outcome).toBe('done')
      expect(await stored(db.pool, blog)).toEqual(ending === 'commit' ? { 1: 1, 2: 1 } : { 2: 1 })
      await worker.stop()
    })
  }

  test('one that was rolled back, or has written nothing for the counter, is not waited for', async () => {
    const blog = await createBlog(db, tally)
    const elsewhere = await createBlog(db, tally)
    const client = await db.connect()
    await client.query('begin')
    await like(client, blog, 1)
    const undone = await tally.transactionToken(client)
    await client.query('rollback')
    const other = await transaction((session) => like(session, elsewhere, 1))
    const nothing = await transaction(async () => {})
    // There is no worker, and these do not need one.
    for (const token of [undone, other, nothing]) await handle(blog).waitFor(token, { timeoutMs: 0 })
    // What others have written, before or after, does not concern them.
    const [before, after] = [await db.connect(), await db.connect()]
    await before.query('begin')
    await like(before, blog, 1)
    const between = await transaction((session) => like(session, elsewhere, 1))
    await before.query('commit')
    await like(after, blog, 1)
    for (const token of [undone, other, nothing, between]) await handle(blog).waitFor(token, { timeoutMs: 0, key: 1 })
    await before.query(`begin; select from ${blog.posts} where id = 1 for no key update`)
    await applyAll(db.pool, blog.counter)
    const last = await transaction(async () => {})
    for (const token of [undone, other, nothing, between]) await handle(blog).waitFor(token, { timeoutMs: 0, key: 2 })
    expect(await outcome(handle(blog).waitFor(last, { timeoutMs: 0 }))).toBe('done')
    await before.query('rollback')
  })

  test('one that was there before the counter', async () => {
    const blog = await createBlog(db, tally)
    const token = await transaction((session) => like(session, blog, 1))
    await tally.createCounter('latecomer', { source: { table: blog.likes, key: 'post_id' } })
    await applyAll(db.pool, 'latecomer')
    await value(db.pool, `select pgtally.apply_carried('latecomer')`)
    await tally.counter('latecomer').waitFor(token, { timeoutMs: 0 })
    expect(await tally.counter('latecomer').get(1)).toBe(1)
  })

  test('one from add() in whatever transaction, with savepoints and with Kysely', async () => {
    await tally.createCounter('tokens', { keyType: 'bigint' })
    const counter = tally.counter('tokens')
    const client = await db.connect()
    await client.query('begin')
    const own = await tally.transactionToken(client)
    expect(await counter.add(client, 1)).toBe(own)
    await client.query('savepoint a')
    expect(await counter.add(client, 1)).toBe(own)
    await client.query('savepoint b')
    expect(await counter.add(client, 1)).toBe(own)
    await client.query('rollback to b')
    expect(await counter.add(client, 2)).toBe(own)
    await client.query('release a; commit')
    const kysely = new Kysely<unknown>({ dialect: new PostgresDialect({ pool: db.pool }) })
    const [first, second, inside] = await kysely.transaction().execute(async (executor) => [await counter.add(executor, 2), await counter.add(executor, 2), await tally.transactionToken(executor)])
    expect([first, second]).toEqual([inside, inside])
    const alone = await counter.add(db.pool, 3)
    expect(new Set([own, first, alone]).size).toBe(3)
    for (const token of [own, inside, alone]) expect(await outcome(counter.waitFor(token, { timeoutMs: 0 }))).toMatchObject({ code: 'TIMEOUT' })
    await applyAll(db.pool, 'tokens')
    for (const token of [own, inside, alone]) await counter.waitFor(token, { timeoutMs: 0 })
    expect(await counter.getMany([1, 2, 3])).toEqual(new Map([[1, 2], [2, 3], [3, 1]]))
  })
})

describe('what ends the wait', () => {
  test('the time is up: with what may be missing', async () => {
    const blog = await createBlog(db, tally)
    const token = await transaction((session) => like(session, blog, 1))
    await expect(handle(blog).waitFor(token, { timeoutMs: 30 })).rejects.toMatchObject({
      name: 'PgtallyError',
      code: 'TIMEOUT',
      message: expect.stringMatching(new RegExp(`"${blog.counter}".*${token} within 30 ms.*worker`)),
    })
    const unknown = String(BigInt(token) + 1_000_000n)
    await expect(handle(blog).waitFor(unknown, { timeoutMs: 0 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    await applyAll(db.pool, blog.counter)
    await handle(blog).waitFor(token, { timeoutMs: 0 })
  })

  test('the signal, with its reason, before or during the wait', async () => {
    const blog = await createBlog(db, tally)
    const token = await transaction((session) => like(session, blog, 1))
    const reason = new Error('the visitor has gone')
    expect(await outcome(handle(blog).waitFor(token, { signal: AbortSignal.abort(reason) }))).toBe(reason)
    const controller = new AbortController()
    const waiting = watch(handle(blog).waitFor(token, { signal: controller.signal }))
    await waitFor(async () => value<boolean>(db.pool, `select count(*) > 0 from pg_stat_activity where query like '%is_stored%' and datname = current_database() and pid <> pg_backend_pid()`), { what: 'the wait' })
    await sleep(30)
    expect(waiting.settled).toBe(false)
    controller.abort(reason)
    expect(await waiting.outcome).toBe(reason)
    expect(await outcome(handle(blog).waitFor(token, { signal: AbortSignal.timeout(20) }))).toMatchObject({ name: 'TimeoutError' })
  })

  test('a counter or key that there is not', async () => {
    const blog = await createBlog(db, tally)
    const token = await transaction((session) => like(session, blog, 1))
    await expect(tally.counter('nobody').waitFor(token)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await applyAll(db.pool, blog.counter)
    await expect(tally.counter(blog.counter).waitFor(token, { key: 'x' })).rejects.toMatchObject({ code: '22P02' })
    await expect(tally.counter(blog.counter).waitFor(token, { key: 1.5 })).rejects.toMatchObject({ name: 'PgtallyError' })
  })

  test('a token that is none', async () => {
    const blog = await createBlog(db, tally)
    const tokens: unknown[] = ['', 'x', '-5', '+5', '5.5', ' 5', '5 ', '5\n', '0x10', '1e3', '٣', '0', '007', '18446744073709551616', '99999999999999999999', '123456789012345678901', null, undefined, {}, [], Number.NaN, 1.5]
    for (const token of tokens) {
      const error = await outcome(handle(blog).waitFor(token as string, { timeoutMs: 0 }))
      expect({ token, error }).toMatchObject({ token, error: { name: 'PgtallyError', code: 'INVALID_ARGUMENT', message: expect.stringContaining('transactionToken()') } })
    }
    for (const timeoutMs of [Number.NaN, -1, 'soon']) {
      expect(await outcome(handle(blog).waitFor('5', { timeoutMs: timeoutMs as number }))).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('timeoutMs') })
    }
  })
})
