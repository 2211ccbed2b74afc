import { setTimeout as sleep } from 'node:timers/promises'

import type pg from 'pg'
import { beforeEach, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { installed, value } from './support/fixtures.ts'

// As docs/shadow-mode.md tells it.

const posts = 20
const sloppy = [3, 5, 7]

let db: TestDatabase
let tally: Tally

beforeEach(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  await db.pool.query(`
    create table posts (id bigint primary key, like_count integer not null default 0);
    create table likes (post_id bigint references posts, user_id integer, primary key (post_id, user_id));
    insert into posts (id) select generate_series(1, ${posts});
    insert into likes select 1 + n % ${posts}, -n from generate_series(1, 500) n;
    update posts set like_count = (select count(*) from likes where post_id = posts.id);
    create table forgotten (post_id bigint not null, n integer not null)`)
  return db.drop
})

/** What the processes of one version of the application do. */
interface Version {
  /** Whether it updates like_count itself, in the transaction of the like. */
  updates: boolean
  /** The posts whose count it forgets to update with a like. */
  forgets: readonly number[]
}

/** An application at work: processes that like and unlike, until it is stopped. */
class Application {
  readonly #random = new Random(Math.floor(Math.random() * 2 ** 31))
  readonly #stopping = new AbortController()
  readonly #versions: Version[]
  readonly #transactions: number[]
  readonly #done: Promise<unknown>

  constructor(processes: number, version: Version) {
    this.#versions = Array.from({ length: processes }, () => version)
    this.#transactions = this.#versions.map(() => 0)
    this.#done = Promise.all(this.#versions.map((_, process) => this.#run(process)))
    this.#done.catch(() => {})
  }

  /** Lets some processes run another version. Resolves when none of them is in a transaction of the earlier one. */
  async deploy(version: Version, processes = this.#versions.map((_, index) => index)): Promise<void> {
    for (const index of processes) this.#versions[index] = version
    await this.work(2)
  }

  /** Resolves when each process has ended so many transactions more. */
  async work(count: number): Promise<void> {
    const before = [...this.#transactions]
    const worked = waitFor(async () => this.#transactions.every((transactions, index) => transactions >= (before[index] ?? 0) + count), { what: 'each process to do some work' })
    await Promise.race([worked, this.#done])
  }

  async stop(): Promise<void> {
    this.#stopping.abort()
    await this.#done
  }

  async #run(process: number): Promise<void> {
    const client = await db.connect()
    const random = this.#random.fork()
    while (!this.#stopping.signal.aborted) {
      const version = this.#versions[process]
      if (version === undefined) return
      await transact(client, version, process * 100 + random.upTo(100), random)
      this.#transactions[process] = (this.#transactions[process] ?? 0) + 1
      await sleep(random.upTo(3))
    }
  }
}

async function transact(client: pg.Client, { updates, forgets }: Version, user: number, random: Random): Promise<void> {
  // Always in the order of their numbers, since the application itself must not deadlock over the rows that it updates.
  const chosen = new Set(Array.from({ length: random.upTo(3) }, () => random.upTo(posts)))
  await client.query('begin')
  for (const post of [...chosen].toSorted((one, other) => one - other)) {
    const liking = random.next() < 0.6
    const statement = liking ? 'insert into likes values ($1, $2) on conflict do nothing' : 'delete from likes where post_id = $1 and user_id = $2'
    const { rowCount } = await client.query(statement, [post, user])
    if (rowCount === 0 || !updates) continue
    if (liking && forgets.includes(post)) await client.query('insert into forgotten values ($1, 1)', [post])
    else await client.query('update posts set like_count = like_count + $2 where id = $1', [post, liking ? 1 : -1])
  }
  if (random.next() < 0.05) await sleep(random.upTo(50))
  await client.query(random.next() < 0.1 ? 'rollback' : 'commit')
}

const source = { table: 'likes', key: 'post_id' }
const target = { table: 'posts', key: 'id' }
const careful: Version = { updates: true, forgets: [] }
const careless: Version = { updates: true, forgets: sloppy }
const without: Version = { updates: false, forgets: [] }

const wrongCounts = () => value<number>(db.pool, 'select count(*)::int from posts p where like_count <> (select count(*) from likes where post_id = p.id)')
const forgotten = async () => {
  const { rows } = await db.pool.query<{ key: string; drift: number }>('select post_id::text as key, -sum(n)::int as drift from forgotten group by 1 order by min(post_id)')
  return rows
}

/** A counter beside the application's own count, as the second column of the same row. */
async function createShadow() {
  await db.pool.query('alter table posts add column like_count_shadow bigint not null default 0')
  await tally.createCounter('post_likes_shadow', { source, target: { ...target, column: 'like_count_shadow' } })
  return tally.counter<number>('post_likes_shadow')
}

async function dropShadow(): Promise<void> {
  await tally.dropCounter('post_likes_shadow')
  await db.pool.query('alter table posts drop column like_count_shadow')
}

async function createCounter() {
  await tally.createCounter('post_likes', { source, target: { ...target, column: 'like_count' } })
  return tally.counter<number>('post_likes')
}

test('a counter beside the application\'s own count tells at any time whether that is right, and takes over from it', async () => {
  const application = new Application(4, careful)
  await using worker = tally.worker({ pollIntervalMs: 5 })
  await application.work(5)
  const shadow = await createShadow()
  for (let i = 0; i < 15; i++) {
    const against = await shadow.audit({ against: 'like_count' })
    expect(against).toEqual({ counter: 'post_likes_shadow', checkedKeys: posts, driftingKeys: 0, drifts: [] })
    expect(await shadow.audit()).toMatchObject({ driftingKeys: 0 })
    await application.work(2)
  }
  expect(await value(db.pool, 'select count(*) filter (where like_count_shadow > 0)::int from posts')).toBe(posts)

  // A version with a bug comes, and is found out while it runs.
  await application.deploy(careless)
  await waitFor(async () => (await forgotten()).length === sloppy.length, { what: 'likes that were forgotten' })
  const { drifts: found } = await shadow.audit({ against: 'like_count' })
  expect(found.map(({ key }) => Number(key))).toEqual(sloppy)
  for (const { drift } of found) expect(drift).toBeLessThan(0)
  expect(await shadow.audit()).toMatchObject({ driftingKeys: 0 })

  // Mended, it makes no new ones; what was forgotten stays wrong, by just that.
  await application.deploy(careful)
  for (let i = 0; i < 5; i++) {
    const { driftingKeys, drifts } = await shadow.audit({ against: 'like_count' })
    expect(drifts.map(({ key, drift }) => ({ key, drift }))).toEqual(await forgotten())
    expect(driftingKeys).toBe(sloppy.length)
    expect(await shadow.audit({ against: 'like_count', keys: [1, 3, 20] })).toMatchObject({ checkedKeys: 3, driftingKeys: 1, drifts: [{ key: '3' }] })
    expect(await shadow.audit({ against: 'like_count', sample: 1000 })).toMatchObject({ checkedKeys: posts, driftingKeys: sloppy.length })
    expect(await shadow.audit({ against: 'like_count', sample: 8 })).toMatchObject({ checkedKeys: 8 })
    expect(await shadow.audit()).toMatchObject({ driftingKeys: 0 })
    await application.work(2)
  }

  // The switch-over: first the application stops counting, then the counter begins, and puts right what is wrong.
  await application.deploy(without)
  await dropShadow()
  const counter = await createCounter()
  for (let i = 0; i < 5; i++) {
    expect(await counter.audit()).toMatchObject({ checkedKeys: posts, driftingKeys: 0 })
    await application.work(2)
  }
  await application.stop()
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await wrongCounts()).toBe(0)
  await worker.stop()
})

test('processes that still count for themselves when the counter begins are put right by a reconciliation', async () => {
  const application = new Application(4, careful)
  await using worker = tally.worker({ pollIntervalMs: 5 })
  await createShadow()
  await application.work(5)
  await application.deploy(without, [0, 1])
  await dropShadow()
  const counter = await createCounter()
  // What the old processes do now is counted twice.
  await waitFor(async () => (await counter.audit()).driftingKeys > 0, { what: 'a count that is wrong' })
  await application.deploy(without)
  expect((await counter.reconcile()).driftingKeys).toBeGreaterThan(0)
  for (let i = 0; i < 5; i++) {
    expect(await counter.audit()).toMatchObject({ driftingKeys: 0 })
    await application.work(2)
  }
  await application.stop()
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await wrongCounts()).toBe(0)
  await worker.stop()
})

test('what cannot be held against a count is refused', async () => {
  const shadow = await createShadow()
  await db.pool.query(`alter table posts add title text, add likes numeric`)
  for (const column of ['title', 'nowhere', 'ctid', '']) {
    await expect(shadow.audit({ against: column })).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringContaining(`"${column}"`) })
  }
  await expect(tally.counter('nobody').audit({ against: 'like_count' })).rejects.toMatchObject({ code: 'NOT_FOUND' })
  await expect(shadow.audit({ against: 'like_count', keys: [1], sample: 1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  // NULL is no likes.
  expect(await shadow.audit({ against: 'likes' })).toMatchObject({ driftingKeys: posts })
  await db.pool.query('delete from likes')
  expect(await shadow.audit({ against: 'likes' })).toMatchObject({ driftingKeys: 0 })
})

test('a counter without a source is held against a column in the same way', async () => {
  await db.pool.query('alter table posts add column shadow bigint')
  await tally.createCounter('added', { target: { ...target, column: 'shadow' } })
  const counter = tally.counter<number>('added')
  await db.pool.query('update posts set like_count = 0')
  await counter.add(db.pool, 4, 2)
  await db.pool.query('update posts set like_count = 2 where id = 4')
  expect(await counter.audit({ against: 'like_count' })).toMatchObject({ checkedKeys: posts, driftingKeys: 0 })
  await counter.add(db.pool, 4)
  await tally.drain()
  expect(await counter.audit({ against: 'like_count' })).toMatchObject({ drifts: [{ key: '4', source: 2, stored: 3, carried: 0, pending: 0, drift: -1 }] })
})
