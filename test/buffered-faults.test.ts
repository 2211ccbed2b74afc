import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import type { BufferedOptions, Counter, Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { installed, outcome, value } from './support/fixtures.ts'
import { startProxy } from './support/proxy.ts'
import { dedicatedServer } from './support/server.ts'
import { beside } from './support/storm.ts'

let db: TestDatabase
let tally: Tally
let counters = 0

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

// BEGIN … READ COMMITTED is not meant.
const commit = 'COMMIT\u0000'
const never = { flushIntervalMs: 2 ** 31 - 1 }

async function createViews(): Promise<Counter<string>> {
  const name = `views_${++counters}`
  await tally.createCounter(name, { keyType: 'text' })
  return tally.counter(name)
}

const count = async (counter: Counter<string>, key: string) => (await counter.get(key, { fresh: true })).count

function createPool(connectionString: string): pg.Pool {
  const pool = new pg.Pool({ connectionString, max: 2, application_name: 'buffered' })
  pool.on('error', () => {})
  return pool
}

/** A buffered counter that reaches the database by a proxy. */
async function startProxied(counter: Counter<string>, options: BufferedOptions = never) {
  const proxy = await startProxy(db.connectionString)
  const pool = createPool(proxy.connectionString)
  const views = createTally({ pool }).buffered<string>(counter.name, options)
  const dispose = async () => {
    await outcome(views.close())
    await pool.end()
    await proxy[Symbol.asyncDispose]()
  }
  return { proxy, pool, views, [Symbol.asyncDispose]: dispose }
}

describe('the connection is lost', () => {
  test('after the commit: it is not written again', async () => {
    const counter = await createViews()
    await using proxied = await startProxied(counter)
    const { proxy, views } = proxied
    for (let round = 1; round <= 3; round++) {
      views.add('a', 10)
      views.add('b', 1)
      const lost = proxy.loseAnswer(commit)
      expect(await outcome(views.flush())).toBeInstanceOf(Error)
      await lost
      expect([await count(counter, 'a'), await count(counter, 'b')]).toEqual([10 * round, round])
      await views.flush()
      await views.flush()
      expect([await count(counter, 'a'), await count(counter, 'b')]).toEqual([10 * round, round])
    }
  })

  test('before the commit arrives: while the server holds on to the transaction it is left alone, and written again once that has ended', async () => {
    const counter = await createViews()
    await using proxied = await startProxied(counter)
    const { proxy, views } = proxied
    views.add('a', 10)
    const lost = proxy.loseMessage(commit)
    expect(await outcome(views.flush())).toBeInstanceOf(Error)
    const { release } = await lost
    // What comes after does not wait for it.
    views.add('a', 1)
    await expect(views.flush()).rejects.toMatchObject({ code: 'OUTCOME_UNKNOWN', message: expect.stringMatching(/transaction \d+/) })
    expect(await count(counter, 'a')).toBe(1)
    await expect(views.flush()).rejects.toMatchObject({ code: 'OUTCOME_UNKNOWN' })
    release()
    await waitFor(async () => (await outcome(views.flush())) === 'done', { what: 'the server to notice' })
    expect(await count(counter, 'a')).toBe(11)
  })

  test('before anything was written: it is written with the next', async () => {
    const counter = await createViews()
    await using proxied = await startProxied(counter)
    const { proxy, views } = proxied
    for (const [message, text] of [['loseMessage', 'add_events'], ['loseAnswer', 'add_events'], ['loseMessage', 'BEGIN']] as const) {
      views.add('a', 10)
      const lost = proxy[message](text)
      expect(await outcome(views.flush())).toBeInstanceOf(Error)
      const result = await lost
      result?.release()
    }
    expect(await count(counter, 'a')).toBe(0)
    await views.flush()
    expect(await count(counter, 'a')).toBe(30)
  })

  test('after the commit, with no one to ask for a while', async () => {
    const counter = await createViews()
    const errors: unknown[] = []
    await using proxied = await startProxied(counter, { ...never, maxKeys: 2, onError: (error) => errors.push(error) })
    const { proxy, views } = proxied
    const lost = proxy.loseAnswer(commit)
    for (const key of ['a', 'b', 'c', 'd', 'e']) views.add(key, 10)
    await lost
    await waitFor(async () => errors.length > 0, { what: 'the failure' })
    const unasked = proxy.loseMessage('pg_xact_status')
    expect(await outcome(views.flush())).toBeInstanceOf(Error)
    await unasked
    await views.flush()
    for (const key of ['a', 'b', 'c', 'd', 'e']) expect(await count(counter, key)).toBe(10)
  })

  test('again and again, wherever it is: every add counts once', async () => {
    const counter = await createViews()
    const pool = createPool(db.connectionString)
    const errors: unknown[] = []
    const views = createTally({ pool }).buffered<string>(counter.name, { flushIntervalMs: 1, maxKeys: 3, onError: (error) => errors.push(error) })
    let added = 0
    {
      await using running = new AsyncDisposableStack()
      running.use(beside(async () => {
        for (let n = 0; n < 10; n++) views.add(`key ${added++ % 10}`)
      }))
      running.use(beside(() => db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'buffered' and datname = current_database() and random() < 0.3`)))
      await waitFor(async () => added > 3000 && errors.length > 50, { what: 'enough failures' })
    }
    await waitFor(async () => (await outcome(views.close())) === 'done', { what: 'the last flush' })
    await pool.end()
    const keys = Array.from({ length: 10 }, (_, n) => `key ${n}`)
    const found = await counter.getMany(keys, { fresh: true })
    expect(keys.map((key) => found.get(key)?.count)).toEqual(keys.map((_, n) => Math.floor((added + 9 - n) / 10)))
  })
})

describe('the server cannot tell what became of a commit', () => {
  /** Asks the server about another transaction, or another cluster, than it was. */
  class OtherPool extends pg.Pool {
    instead: readonly [transaction: string | undefined, cluster: string | undefined] | undefined

    override query(...args: unknown[]): never {
      const [text, values] = args as [string, string[]]
      const asked = this.instead !== undefined && text.includes('pg_xact_status') ? values.map((value_, index) => this.instead?.[index] ?? value_) : values
      return super.query(text, asked) as never
    }
  }

  const notTold = { code: 'OUTCOME_UNKNOWN', message: expect.stringMatching(/transaction \d+.*1 sums.*not written again/) }

  test.each([
    ['reported', 'another cluster', [undefined, '1'], 'loseAnswer', notTold],
    ['reported', 'an id that is too old', ['4', undefined], 'loseAnswer', notTold],
    ['written again', 'an id of which it has not heard yet', [String(2n ** 62n + 1000n), undefined], 'loseMessage', 'done'],
  ] as const)('it is %s: %s', async (_, __, instead, lose, expected) => {
    const counter = await createViews()
    await using proxy = await startProxy(db.connectionString)
    const pool = new OtherPool({ connectionString: proxy.connectionString })
    pool.on('error', () => {})
    const views = createTally({ pool }).buffered<string>(counter.name, never)
    views.add('a', 10)
    const lost = proxy[lose](commit)
    expect(await outcome(views.flush())).toBeInstanceOf(Error)
    const result = await lost
    result?.release()
    views.add('a', 1)
    pool.instead = instead
    expect([await outcome(views.flush())]).toMatchObject([expected])
    expect(await count(counter, 'a')).toBe(11)
    await views.close()
    expect(await count(counter, 'a')).toBe(11)
    await pool.end()
  })

  test('together with other errors: all of them are reported', async () => {
    const name = `views_${++counters}`
    await tally.createCounter(name, { keyType: 'bigint' })
    await using proxy = await startProxy(db.connectionString)
    const pool = new OtherPool({ connectionString: proxy.connectionString })
    pool.on('error', () => {})
    const views = createTally({ pool }).buffered(name, never)
    views.add(1, 10)
    const lost = proxy.loseAnswer(commit)
    await outcome(views.flush())
    await lost
    views.add('bad')
    views.add(2)
    pool.instead = [undefined, '1']
    await expect(views.close()).rejects.toMatchObject({ name: 'AggregateError', errors: [{ code: 'OUTCOME_UNKNOWN' }, { code: 'INVALID_EVENT' }], message: expect.stringContaining('"bad"') })
    expect((await tally.counter<number>(name).getMany([1, 2], { fresh: true })).get(2)?.count).toBe(1)
    await views.close()
    await pool.end()
  })
})

describe('the database is away', () => {
  /** A pool whose server is not there. */
  async function lostPool(): Promise<pg.Pool> {
    const proxy = await startProxy(db.connectionString)
    const pool = createPool(proxy.connectionString)
    await proxy[Symbol.asyncDispose]()
    return pool
  }

  test('adding goes on, and does not try again with every key; what was kept is written later', async () => {
    const counter = await createViews()
    const pool = await lostPool()
    const errors: unknown[] = []
    const views = createTally({ pool }).buffered<string>(counter.name, { ...never, maxKeys: 10, onError: (error) => errors.push(error) })
    let added = 0
    for (let round = 0; round < 20; round++) {
      for (let n = 0; n < 1000; n++) views.add(`key ${added++ % 50}`)
      await waitFor(async () => errors.length > 0, { what: 'the first failure' })
    }
    expect(errors).toMatchObject([{ code: 'ECONNREFUSED' }])
    for (let round = 0; round < 2; round++) await expect(views.close()).rejects.toMatchObject({ code: 'ECONNREFUSED' })
    pool.options.connectionString = db.connectionString
    await views.close()
    await pool.end()
    expect(await value(db.pool, 'select sum(stored + carried + pending)::int from pgtally.get_fresh_counts($1, $2)', [counter.name, Array.from({ length: 50 }, (_, n) => `key ${n}`)])).toBe(added)
    expect(errors).toHaveLength(1)
  })

  test('it is tried again by time, without another add, until it is back', async () => {
    const counter = await createViews()
    const pool = await lostPool()
    const errors: unknown[] = []
    await using views = createTally({ pool }).buffered<string>(counter.name, { flushIntervalMs: 20, onError: (error) => errors.push(error) })
    views.add('a', 5)
    await waitFor(async () => errors.length >= 3, { what: 'three failures' })
    pool.options.connectionString = db.connectionString
    await waitFor(async () => (await count(counter, 'a')) > 0, { what: 'the sum' })
    expect(await count(counter, 'a')).toBe(5)
    await views.close()
    await pool.end()
  })

  test('it crashes and comes back, several times: not one add is counted twice', async (context) => {
    await using server = await dedicatedServer(context)
    await using own = await createTestDatabase(server.connectionString)
    const ownTally = await installed(own)
    await ownTally.createCounter('views', { keyType: 'text' })
    const pool = createPool(own.connectionString)
    const views = createTally({ pool }).buffered<string>('views', { flushIntervalMs: 2 })
    let added = 0
    const counted = async () => (await ownTally.counter<string>('views').get('a', { fresh: true })).count
    {
      await using running = new AsyncDisposableStack()
      running.use(beside(async () => {
        views.add('a')
        added++
      }))
      for (let round = 0; round < 3; round++) {
        const before = await counted()
        await waitFor(async () => (await counted()) > before + 100, { what: 'views' })
        await server.crash()
        await server.restart()
        expect(await counted()).toBeLessThanOrEqual(added)
      }
    }
    await waitFor(async () => (await outcome(views.close())) === 'done', { what: 'the last flush' })
    await pool.end()
    // Nobody else takes transaction ids here, so none is used again.
    expect(await counted()).toBe(added)
  })
})
