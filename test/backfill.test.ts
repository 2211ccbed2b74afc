import { beforeAll, describe, expect, test } from 'vitest'

import type { MeasureProgress, Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, installed, like, pid, stored, value } from './support/fixtures.ts'
import { expectExact, seed, startCommand, storm } from './support/storm.ts'
import { clean, createGate, createUncounted, problems, unfinished } from './support/uncounted.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index)

describe('a counter of a table that has rows', () => {
  test(`is exact with likes, unlikes, changes and open transactions under way (seed ${seed})`, async () => {
    const { blog, definition } = await createUncounted(db, 3000)
    await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + g % 20 from generate_series(1, 500) g; update ${blog.posts} set like_count = 77 where id in (5, 6)`)
    // Open when the triggers come: what they have written so far has no event, what they write later has.
    const open = [await db.connect(), await db.connect(), await db.connect()] as const
    for (const [index, client] of open.entries()) {
      await client.query(`begin isolation level ${index === 1 ? 'repeatable read' : 'read committed'}`)
      await client.query(`insert into ${blog.likes} (post_id) values (1), (2); delete from ${blog.likes} where id = ${3 + index}; update ${blog.likes} set post_id = 9 where id = ${13 + index}`)
    }
    await using running = new AsyncDisposableStack()
    running.use(tally.worker())
    const writing = running.use(storm(db, blog, { posts: 3000, writers: 4 }))
    let created = false
    const creation = tally.createCounter(blog.counter, definition()).then((result) => {
      created = true
      return result
    })
    const asksForLock = (granted: boolean) => waitFor(async () => value<boolean>(db.pool, `select ${granted ? 'not' : ''} exists (select from pg_locks where not granted and relation = '${blog.likes}'::regclass and mode = 'ShareRowExclusiveLock')`), { what: 'an attempt' })
    // Twice: asks for it, and gives up; meanwhile the others go on.
    for (let attempt = 0; attempt < 2; attempt++) {
      await asksForLock(false)
      await asksForLock(true)
      const written = writing.rounds
      await waitFor(async () => writing.rounds > written + 8, { what: 'likes between two attempts' })
    }
    expect(created).toBe(false)
    for (const client of open) await client.query(`insert into ${blog.likes} (post_id) values (1), (3)`)
    await open[0].query('commit')
    await open[1].query('commit')
    await open[2].query('rollback')
    expect(await creation).toBe(true)
    for (let round = 0; round < 3; round++) expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
    const written = writing.rounds
    await waitFor(async () => writing.rounds > written + 50, { what: 'more likes' })
    await running.disposeAsync()
    await expectExact(db, tally, blog)
  })

  test('holds up no like, batch or audit while it is counted', async () => {
    const gate = await createGate(db, 2000)
    const { blog, definition } = await createUncounted(db, 3000)
    let created = false
    const creation = tally.createCounter(blog.counter, definition(gate.where)).then(() => (created = true))
    await gate.waiting()
    // A range is in hand, and nobody waits for it.
    await like(db.pool, blog, 2001)
    await db.pool.query(`update ${blog.likes} set post_id = 2999 where post_id = 2001; delete from ${blog.likes} where post_id = 5; update ${blog.posts} set like_count = like_count where id in (2001, 2999)`)
    await applyAll(db.pool, blog.counter)
    await db.pool.query('select pgtally.apply_carried($1)', [blog.counter])
    expect(await tally.counter(blog.counter).audit({ keys: [1, 5, 2001, 2002, 2999] })).toMatchObject({ checkedKeys: 5, drifts: [{ key: '2001', drift: 1 }, { key: '2002', drift: 1 }, { key: '2999', drift: 1 }] })
    expect(await problems(tally, blog)).toEqual([expect.stringMatching(/backfill is under way.*up to the key 1\d\d\d\./)])
    expect(created).toBe(false)
    await gate.open()
    await creation
    expect(await problems(tally, blog)).toEqual([])
    await expectExact(db, tally, blog)
  })

  test('without backfill says what to do, and is exact when that is done', async () => {
    const { blog, definition } = await createUncounted(db)
    expect(await tally.createCounter(blog.counter, definition(), { backfill: false })).toBe(true)
    await like(db.pool, blog, 1)
    await tally.drain()
    expect(await stored(db.pool, blog)).toEqual({ 1: 1 })
    const [problem = '', ...others] = (await problems(tally, blog)) ?? []
    expect(others).toEqual([])
    expect(problem).toMatch(/not counted yet. Run: pgtally reconcile/)
    const status = startCommand(db.connectionString, ['status'])
    expect(await status.ended).toMatchObject({ code: 1, stdout: expect.stringContaining('not counted yet') })
    // Exactly what it says.
    const remedy = startCommand(db.connectionString, problem.replace(/.*Run: pgtally /, '').split(' '))
    expect(await remedy.ended).toMatchObject({ code: 0, stdout: expect.stringMatching(/10 corrected/) })
    expect(await problems(tally, blog)).toEqual([])
    await expectExact(db, tally, blog)
  })

  test('created by a command that was killed is completed by the next of the same definition', async () => {
    const gate = await createGate(db, 2500)
    const { blog, definition } = await createUncounted(db, 3000)
    await using command = startCommand(db.connectionString, ['counter', 'create', blog.counter, '--source', blog.likes, '--source-key', 'post_id', '--where', gate.where,
      '--target', blog.posts, '--target-key', 'id', '--target-column', 'like_count'])
    const backend = await gate.waiting()
    await command.kill()
    await db.pool.query('select pg_terminate_backend($1)', [backend])
    await gate.open()
    await waitFor(async () => value<boolean>(db.pool, 'select not exists (select from pg_stat_activity where pid = $1)', [backend]), { what: 'the end of its session' })
    const before = await unfinished(db, blog)
    expect(before).toMatchObject({ reason: 'backfill', after_key: expect.stringMatching(/^[12]\d\d\d$/) })
    const done = Number(before?.after_key)
    await db.pool.query(`delete from ${blog.likes} where post_id in (10, 1500)`)
    expect(await tally.createCounter(blog.counter, definition(gate.where), { backfill: false })).toBe(false)
    expect(await unfinished(db, blog)).toEqual(before)
    const seen: MeasureProgress[] = []
    expect(await tally.createCounter(blog.counter, definition(gate.where), { onProgress: (progress) => seen.push(progress) })).toBe(false)
    // Not again what was done.
    expect(seen.at(-1)).toMatchObject({ counter: blog.counter, checkedKeys: 3000 - done, driftingKeys: 3000 - done })
    expect(await unfinished(db, blog)).toBeUndefined()
    expect(await problems(tally, blog)).toEqual([])
    await expectExact(db, tally, blog)
    expect(await tally.createCounter(blog.counter, definition(gate.where), { onProgress: () => expect.unreachable() })).toBe(false)
  })

  test('that many create at once is exact for each of them when it is told so', async () => {
    const { blog, definition } = await createUncounted(db, 4000)
    await using running = new AsyncDisposableStack()
    running.use(storm(db, blog, { posts: 100, writers: 2 }))
    const created = await Promise.all(
      range(1, 6).map(async () => {
        const result = await tally.createCounter(blog.counter, definition())
        expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
        return result
      }),
    )
    expect(created.filter(Boolean)).toHaveLength(1)
    await running.disposeAsync()
    await expectExact(db, tally, blog)
  })
})

test('a counter is exact when it is told so, also when somebody has begun its backfill anew meanwhile', async () => {
  const gate = await createGate(db, 2000)
  const { blog, definition } = await createUncounted(db, 8000)
  const creation = tally.createCounter(blog.counter, definition(gate.where))
  await gate.waiting()
  const restarting = await db.connect()
  const backend = await pid(restarting)
  const restarted = restarting.query('select pgtally.begin_reconciliation($1, true)', [blog.counter])
  await blocked(db, backend)
  await gate.open()
  await restarted
  expect(await creation).toBe(true)
  expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
})
