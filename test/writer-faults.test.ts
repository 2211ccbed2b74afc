import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import type { Tally, Writer } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { blocked, column, installed, outcome, pid, value, type Blog } from './support/fixtures.ts'
import { createMemberships, expectCounted, pairs, statements } from './support/memberships.ts'
import { startProxy } from './support/proxy.ts'
import { dedicatedServer } from './support/server.ts'
import { beside, seed } from './support/storm.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

/** A writer with a pool of its own, which is closed after it. */
function ownWriter({ likes }: Blog, { writer = {}, ...config }: pg.PoolConfig & { writer?: object } = {}) {
  const pool = new pg.Pool({ connectionString: db.connectionString, max: 3, application_name: `writer of ${likes}`, ...config })
  pool.on('error', () => {})
  const made = createTally({ pool }).writer<number, number>({ table: likes, key: 'post_id', member: 'user_id', ...writer })
  return {
    add: made.add.bind(made),
    remove: made.remove.bind(made),
    pool,
    [Symbol.asyncDispose]: async () => {
      await made.close()
      await pool.end()
    },
  }
}

/** The sessions whose statement waits for a lock, as soon as there are so many. */
async function waiting({ likes }: Blog, count = 1): Promise<number[]> {
  return waitFor(async () => {
    const pids = await column<number>(db.pool, `select pid from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'`, [`writer of ${likes}`])
    return pids.length === count && pids
  }, { what: `${count} statements that wait` })
}

type Writes = Pick<Writer<number, number>, 'add' | 'remove'>

/** Resolves when the sessions have ended: then they have told what they have counted. */
async function ended({ likes }: Blog): Promise<void> {
  await waitFor(async () => value<boolean>(db.pool, 'select not exists (select from pg_stat_activity where application_name = $1)', [`writer of ${likes}`]), { what: 'the sessions to end' })
}

const deadlocks = () => value<string>(db.pool, 'select deadlocks::text from pg_stat_database where datname = current_database()')
const unknown = (likes: string) => ({ name: 'PgtallyError', code: 'OUTCOME_UNKNOWN', message: expect.stringContaining(likes), cause: expect.any(Error) })

describe('the connection is lost', () => {
  test('while the statement is under way: the outcome is unknown, and calls go on', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = ownWriter(blog, { writer: { maxGroupsInFlight: 1 } })
    await likes.add(9, 9)
    const holder = await db.connect()
    await holder.query(`begin; select from ${blog.posts} where id = 1 for update`)
    const lost = [likes.add(1, 1), likes.add(1, 2), likes.remove(9, 9)].map((call) => outcome(call))
    const [backend] = await waiting(blog)
    const next = [likes.add(2, 1), likes.add(1, 1)]
    await value(db.pool, 'select pg_terminate_backend($1)', [backend])
    expect(await Promise.all(lost)).toMatchObject(Array(3).fill(unknown(blog.likes)))
    await holder.query('commit')
    expect(await Promise.all(next)).toEqual([true, true])
    expect(await pairs(db, blog)).toEqual(['1:1', '2:1', '9:9'])
    await expectCounted(db, tally, blog)
  })

  test('after the commit, before the answer: the outcome is unknown, and calling again finds the row', async () => {
    const blog = await createMemberships(db, tally)
    await using proxy = await startProxy(db.connectionString)
    await using likes = ownWriter(blog, { connectionString: proxy.connectionString })
    expect(await likes.add(1, 1)).toBe(true)
    const lost = proxy.loseAnswer('on conflict')
    expect(await outcome(likes.add(1, 2))).toMatchObject(unknown(blog.likes))
    await lost
    expect(await pairs(db, blog)).toEqual(['1:1', '1:2'])
    expect(await likes.add(1, 2)).toBe(false)
    const deleted = proxy.loseAnswer('delete from')
    expect(await outcome(likes.remove(1, 2))).toMatchObject(unknown(blog.likes))
    await deleted
    expect(await likes.remove(1, 2)).toBe(false)
    expect(await pairs(db, blog)).toEqual(['1:1'])
    await expectCounted(db, tally, blog)
  })

  test('before the statement arrives: unknown as well, and nothing was written', async () => {
    const blog = await createMemberships(db, tally)
    await using proxy = await startProxy(db.connectionString)
    await using likes = ownWriter(blog, { connectionString: proxy.connectionString })
    await likes.add(1, 1)
    const lost = proxy.loseMessage('on conflict')
    expect(await outcome(likes.add(1, 2))).toMatchObject(unknown(blog.likes))
    const { release } = await lost
    release()
    expect(await likes.add(1, 2)).toBe(true)
  })

  test('in one half of a group, of which a row is at fault: of the other half the outcome is known', async () => {
    const blog = await createMemberships(db, tally)
    await using proxy = await startProxy(db.connectionString)
    await using likes = ownWriter(blog, { connectionString: proxy.connectionString })
    await likes.add(9, 9)
    // In the order of texts the halves are 1 and 2, 404 and 5.
    const lost = proxy.loseMessage('{404,5}')
    const calls = [likes.add(1, 1), likes.add(2, 1), likes.add(404, 1), likes.add(5, 1)].map((call) => outcome(call))
    expect(await Promise.all(calls)).toMatchObject(['done', 'done', unknown(blog.likes), unknown(blog.likes)])
    const { release } = await lost
    release()
    expect(await pairs(db, blog)).toEqual(['1:1', '2:1', '9:9'])
  })

  test('by the client, which does not wait any longer: unknown, and that connection is not used again', async () => {
    const blog = await createMemberships(db, tally)
    const holder = await db.connect()
    await using likes = ownWriter(blog, { query_timeout: 500, max: 1 })
    await likes.add(9, 9)
    const [before] = (await likes.pool.query<{ pid: number }>('select pg_backend_pid() as pid')).rows
    await holder.query(`begin; select from ${blog.posts} where id = 1 for update`)
    expect(await outcome(likes.add(1, 1))).toMatchObject(unknown(blog.likes))
    const [after] = (await likes.pool.query<{ pid: number }>('select pg_backend_pid() as pid')).rows
    expect(after?.pid).not.toBe(before?.pid)
    await holder.query('commit')
  })
})

describe('what leaves no doubt is not OUTCOME_UNKNOWN', () => {
  test('no server: nothing was sent, and once it is there all goes on', async () => {
    const blog = await createMemberships(db, tally)
    const proxy = await startProxy(db.connectionString)
    const { connectionString } = proxy
    await proxy[Symbol.asyncDispose]()
    await using likes = ownWriter(blog, { connectionString })
    // The first ones fail in looking up the table, which is done again.
    for (let round = 0; round < 2; round++) {
      expect(await Promise.all([outcome(likes.add(1, 1)), outcome(likes.remove(1, 1))])).toMatchObject([{ code: 'ECONNREFUSED' }, { code: 'ECONNREFUSED' }])
    }
    likes.pool.options.connectionString = db.connectionString
    expect(await likes.add(1, 1)).toBe(true)
    // And the later ones in writing.
    likes.pool.options.connectionString = connectionString
    await db.pool.query('select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1', [`writer of ${blog.likes}`])
    await waitFor(async () => likes.pool.totalCount === 0, { what: 'the pool to notice' })
    expect(await outcome(likes.add(1, 2))).toMatchObject({ code: 'ECONNREFUSED' })
    likes.pool.options.connectionString = db.connectionString
    expect(await likes.add(1, 2)).toBe(true)
  })

  test('no connection of the pool is free in time', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = ownWriter(blog, { max: 1, connectionTimeoutMillis: 1500 })
    await likes.add(1, 1)
    const taken = await likes.pool.connect()
    const error = await outcome(likes.add(1, 2))
    expect(error).toMatchObject({ message: expect.stringContaining('timeout') })
    expect(error).not.toHaveProperty('code')
    taken.release()
    expect(await likes.add(1, 2)).toBe(true)
  })

  test('the server ends the statement', async () => {
    const blog = await createMemberships(db, tally)
    const holder = await db.connect()
    await using likes = ownWriter(blog, { statement_timeout: 300 })
    await likes.add(9, 9)
    await holder.query(`begin; select from ${blog.posts} where id = 1 for update`)
    expect(await Promise.all([likes.add(1, 1), likes.add(2, 2)].map((call) => outcome(call)))).toMatchObject([{ code: '57014' }, { code: '57014' }])
    await holder.query('commit')
    expect(await pairs(db, blog)).toEqual(['9:9'])
    expect(await likes.add(1, 1)).toBe(true)
  })

  test('a server that only reads', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = ownWriter(blog, { options: '-c default_transaction_read_only=on' })
    expect(await Promise.all([likes.add(1, 1), likes.remove(1, 2)].map((call) => outcome(call)))).toMatchObject([{ code: '25006' }, { code: '25006' }])
  })
})

describe('many writers', () => {
  test(`of overlapping pairs, added and removed in any order, never come into a deadlock, and all is counted (seed ${seed})`, async () => {
    const blog = await createMemberships(db, tally)
    const before = await deadlocks()
    const random = new Random(seed)
    const balance = new Map<string, number>()
    {
      await using running = new AsyncDisposableStack()
      running.use(tally.worker({ pollIntervalMs: 5 }))
      running.use(beside(() => tally.counter(blog.counter).audit().then(({ driftingKeys }) => expect(driftingKeys).toBe(0))))
      const writers = [1, 2, 3].map((n) => running.use(ownWriter(blog, { max: 2, writer: { maxGroupSize: [2000, 60, 300][n - 1], maxGroupsInFlight: 2 } })))
      await Promise.all(writers.map(async (likes) => {
        const own = random.fork()
        for (let round = 0; round < 60; round++) {
          await Promise.all(Array.from({ length: 300 }, async () => {
            const [post, user, removes] = [own.upTo(10), own.upTo(60), own.next() < 0.5]
            const changed = await (removes ? likes.remove(post, user) : likes.add(post, user))
            const pair = `${post}:${user}`
            if (changed) balance.set(pair, (balance.get(pair) ?? 0) + (removes ? -1 : 1))
          }))
        }
      }))
    }
    // Whoever was told that he had added or removed a row has done so, alone.
    expect([...balance].filter(([, count]) => count !== 0).map(([pair]) => pair).toSorted()).toEqual((await pairs(db, blog)).toSorted())
    expect(new Set(balance.values())).toEqual(new Set([0, 1]))
    await expectCounted(db, tally, blog)
    await ended(blog)
    expect(await deadlocks()).toBe(before)
  })

  /** Lets two statements come to where they wait for a transaction of somebody else, lets go of it, and tells how many deadlocks that makes. */
  async function meet(blog: Blog, held: string, options: [string, string], work: (first: Writes, second: Writes) => Promise<boolean>[]): Promise<{ results: boolean[]; deadlocks: number }> {
    const before = Number(await deadlocks())
    const holder = await db.connect()
    let results: boolean[]
    {
      await using first = ownWriter(blog, { options: `-c deadlock_timeout=50ms ${options[0]}` })
      await using second = ownWriter(blog, { options: `-c deadlock_timeout=50ms ${options[1]}` })
      await Promise.all([first.remove(10, 1), second.remove(10, 1)])
      await holder.query(`begin; ${held}`)
      const calls = Promise.all(work(first, second))
      await waiting(blog, 2)
      await holder.query('rollback')
      results = await calls
    }
    await ended(blog)
    return { results, deadlocks: Number(await deadlocks()) - before }
  }

  test('that remove the same rows take them in one order, whatever the plans', async () => {
    const blog = await createMemberships(db, tally)
    const users = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    for (const user of users.toReversed()) await db.pool.query(`insert into ${blog.likes} values (1, ${user})`)
    // In the order of the group, and in that of the table.
    const plans: [string, string] = ['-c enable_hashjoin=off -c enable_mergejoin=off', '-c enable_nestloop=off -c enable_mergejoin=off']
    const { results, deadlocks: found } = await meet(blog, `select from ${blog.likes} where user_id = 5 for update`, plans, (first, second) => [first, second].flatMap((likes) => users.map((user) => likes.remove(1, user))))
    expect(results.filter(Boolean)).toHaveLength(9)
    expect(found).toBe(0)
    await expectCounted(db, tally, blog)
  })

  test('that add what the other one removes', async () => {
    const blog = await createMemberships(db, tally)
    await db.pool.query(`insert into ${blog.likes} values (1, 1), (1, 2)`)
    const { results, deadlocks: found } = await meet(blog, `insert into ${blog.likes} values (1, 0)`, ['', ''], (first, second) => [
      first.remove(1, 1), first.add(1, 0), first.add(1, 2),
      second.remove(1, 2), second.add(1, 0), second.add(1, 1),
    ])
    expect([[true, true, false, true, false, true], [true, false, true, true, true, false]]).toContainEqual(results)
    expect(found).toBe(0)
    await expectCounted(db, tally, blog)
  })

  test('wait for a row that another transaction is changing, and remove it whatever it became', async () => {
    const blog = await createMemberships(db, tally, 'note text,')
    await using likes = ownWriter(blog)
    await Promise.all([1, 2, 3, 4].map((user) => likes.add(1, user)))
    const client = await db.connect()
    await client.query(`begin; update ${blog.likes} set note = 'new' where user_id = 1; update ${blog.likes} set user_id = 20 where user_id = 2; delete from ${blog.likes} where user_id = 3; insert into ${blog.likes} values (1, 5)`)
    const calls = [likes.remove(1, 1), likes.remove(1, 2), likes.remove(1, 3), likes.remove(1, 4), likes.add(1, 5), likes.add(1, 6)]
    await waiting(blog)
    await client.query('commit')
    expect(await Promise.all(calls)).toEqual([true, false, false, true, false, true])
    expect(await pairs(db, blog)).toEqual(['1:5', '1:6', '1:20'])
    await expectCounted(db, tally, blog)
  })

  test('a deadlock with the application is broken by the server, and the group written again', async () => {
    const blog = await createMemberships(db, tally)
    await using likes = ownWriter(blog, { options: '-c deadlock_timeout=50ms' })
    await Promise.all([1, 2, 3].map((user) => likes.add(1, user)))
    const [between, application] = [await db.connect(), await db.connect()]
    const applicationPid = await pid(application)
    await between.query(`begin; select from ${blog.likes} where user_id = 2 for update`)
    // Whoever is the last to wait, and not this one, finds the circle.
    await application.query(`set deadlock_timeout = '10min'; begin; delete from ${blog.likes} where user_id = 3`)
    const calls = [likes.remove(1, 1), likes.remove(1, 2), likes.remove(1, 3), likes.add(1, 4)]
    await waiting(blog)
    const deleted = application.query(`delete from ${blog.likes} where user_id = 1`)
    await blocked(db, applicationPid)
    await between.query('rollback')
    await deleted
    await application.query('commit')
    expect(await Promise.all(calls)).toEqual([false, true, false, true])
    await expectCounted(db, tally, blog)
  })

  test('in sessions that are SERIALIZABLE by default', async () => {
    const blog = await createMemberships(db, tally)
    const options = { options: '-c default_transaction_isolation=serializable' }
    await using first = ownWriter(blog, options)
    await using second = ownWriter(blog, options)
    const client = await db.connect()
    await first.add(9, 9)
    await second.add(9, 8)
    await client.query(`begin; insert into ${blog.likes} values (1, 1)`)
    const calls = [first, second].flatMap((likes) => [likes.add(1, 1), likes.add(2, 1), likes.remove(9, 9)])
    await waiting(blog, 2)
    await client.query('commit')
    const results = await Promise.all(calls)
    expect([results[0], results[3]]).toEqual([false, false])
    expect([results[1], results[4]].filter(Boolean)).toHaveLength(1)
    expect([results[2], results[5]].filter(Boolean)).toHaveLength(1)
    await expectCounted(db, tally, blog)
  })
})

test(`what was promised is there after the server has crashed (seed ${seed})`, async (context) => {
  await using server = await dedicatedServer(context)
  await using own = await createTestDatabase(server.connectionString)
  const ownTally = await installed(own)
  const blog = await createMemberships(own, ownTally)
  const pool = new pg.Pool({ connectionString: own.connectionString, max: 4 })
  pool.on('error', () => {})
  const likes = createTally({ pool }).writer<number, number>({ table: blog.likes, key: 'post_id', member: 'user_id', maxGroupSize: 50 })
  const seen = { true: new Set<string>(), unknown: new Set<string>() }
  let user = 0
  {
    await using running = new AsyncDisposableStack()
    for (let n = 0; n < 40; n++) {
      running.use(beside(async () => {
        const [post, mine] = [1 + (n % 10), ++user]
        const result = await likes.add(post, mine).catch((error: { code?: string }) => error.code)
        if (result === true) seen.true.add(`${post}:${mine}`)
        if (result === 'OUTCOME_UNKNOWN') seen.unknown.add(`${post}:${mine}`)
      }))
    }
    for (let round = 1; round <= 3; round++) {
      const written = seen.true.size
      await waitFor(async () => seen.true.size > written + 500, { what: 'likes' })
      await server.crash()
      await server.restart()
    }
  }
  await likes.close()
  await pool.end()
  const there = new Set(await pairs(own, blog))
  expect([...seen.true].filter((pair) => !there.has(pair))).toEqual([])
  expect([...there].filter((pair) => !seen.true.has(pair) && !seen.unknown.has(pair))).toEqual([])
  expect(seen.unknown.size).toBeGreaterThan(0)
  expect((await statements(own, blog, 'insert')).length).toBeGreaterThan(10)
  await expectCounted(own, ownTally, blog)
})
