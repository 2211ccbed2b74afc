import { setTimeout as sleep } from 'node:timers/promises'

import { beforeAll, describe, expect, test } from 'vitest'

import type { Measurement, MeasureProgress, Tally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { applyAll, blocked, createBlog, installed, like, outcome, pid, stored, value, violations, type Blog, type Session } from './support/fixtures.ts'
import { beside, expectExact, seed, startCommand, storm } from './support/storm.ts'
import { dedicatedServer } from './support/server.ts'
import { clean, createGate, createUncounted, problems, unfinished, type Unfinished } from './support/uncounted.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const driftsByKey = ({ drifts }: Measurement) => Object.fromEntries(drifts.map(({ key, drift }) => [key, drift]))
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index)
const carryTable = (own: TestDatabase, { counter }: Blog) => value<string>(own.pool, `select 'pgtally.carry_' || counter_id from pgtally.counter where name = $1`, [counter])

/** Every count is too high by one. */
const spoil = (own: TestDatabase, { posts }: Blog) => own.pool.query(`update ${posts} set like_count = like_count + 1`)

/** What is corrected, but not added yet: as long as no batch runs, this and nothing else is carried. */
async function corrected(own: TestDatabase, blog: Blog): Promise<number[]> {
  const { rows } = await own.pool.query<{ key: string; delta: string }>(`select key::text, delta::text from ${await carryTable(own, blog)} c order by c.key`)
  expect(rows.filter(({ delta }) => delta !== '-1')).toEqual([])
  return rows.map(({ key }) => Number(key))
}

/** A counter of so many posts with one like each, all of them too high by one, that nobody has corrected. */
async function createSpoiled(own: TestDatabase, ownTally: Tally, posts: number, where?: string): Promise<Blog> {
  const { blog, definition } = await createUncounted(own, posts)
  await ownTally.createCounter(blog.counter, definition(where), { backfill: false })
  await own.pool.query(`update ${blog.posts} set like_count = 1; delete from pgtally.reconciliation where counter_id = (select counter_id from pgtally.counter where name = '${blog.counter}')`)
  await spoil(own, blog)
  return blog
}

describe('drift', () => {
  test(`under load is found and corrected to the key and the amount (seed ${seed})`, async () => {
    const blog = await createBlog(db, tally, { posts: 40, rest: { rotationPeriodMs: 1000 } })
    await db.pool.query(`create index on ${blog.likes} (post_id)`)
    const follower = `${blog.counter}_follower`
    await tally.createCounter(follower, { queue: blog.counter })
    const queue = await value<number>(db.pool, 'select pgtally.queue_id($1)', [blog.counter])
    const expected: Record<string, number> = {}
    // What bypasses the queue is missing for whoever follows it, too; what is wrong in the posts is not.
    const expectedOfFollower: Record<string, number> = {}
    const counter = tally.counter(blog.counter)
    {
      await using running = new AsyncDisposableStack()
      running.use(tally.worker())
      running.use(tally.worker({ pollIntervalMs: 5 }))
      const writing = running.use(storm(db, blog, { posts: 40 }))
      await waitFor(async () => writing.rounds > 50 && (await stored(db.pool, blog))[1] !== undefined, { what: 'some likes' })

      // Counts changed by hand, in a post that is written all the time.
      await db.pool.query(`update ${blog.posts} set like_count = like_count + 7 where id = 1; update ${blog.posts} set like_count = like_count - 4 where id = 2`)
      Object.assign(expected, { 1: -7, 2: 4 })
      // Rows that no trigger has seen.
      const unseen = await db.connect()
      for (const operation of ['insert', 'delete']) {
        await unseen.query('begin')
        await unseen.query(`alter table ${blog.likes} disable trigger user`)
        if (operation === 'insert') await unseen.query(`insert into ${blog.likes} (post_id) select 3 from generate_series(1, 5) union all select 4`)
        else await unseen.query(`with chosen as (select id from ${blog.likes} where post_id = 3 order by id desc limit 2) delete from ${blog.likes} l using chosen where l.id = chosen.id`)
        await unseen.query(`alter table ${blog.likes} enable trigger user`)
        await unseen.query('commit')
      }
      Object.assign(expected, { 3: 3, 4: 1 })
      Object.assign(expectedOfFollower, { 3: 3, 4: 1 })
      // Events that were lost before they were applied.
      await unseen.query('begin')
      await unseen.query(`insert into ${blog.likes} (post_id) select 5 from generate_series(1, 6); delete from ${blog.likes} where id in (select id from ${blog.likes} where post_id = 6 order by id limit 1)`)
      const lost = await unseen.query<{ key: string; delta: string }>(`with lost as (delete from pgtally.event_${queue} where ev_txid = pg_current_xact_id() returning ev_key, ev_delta) select ev_key::text as key, sum(ev_delta)::text as delta from lost group by ev_key`)
      await unseen.query('commit')
      for (const { key, delta } of lost.rows) expected[key] = expectedOfFollower[key] = Number(delta)
      expect(expected[5]).toBe(6)
      // And such as were written by nobody's like.
      await db.pool.query(`insert into pgtally.event_${queue} (ev_slot, ev_key, ev_delta) values (0, 7, 9)`)
      expected[7] = expectedOfFollower[7] = -9

      for (let round = 0; round < 5; round++) {
        expect(driftsByKey(await counter.audit())).toEqual(expected)
        expect(driftsByKey(await tally.counter(follower).audit())).toEqual(expectedOfFollower)
      }
      const dry = startCommand(db.connectionString, ['reconcile', blog.counter, '--dry-run', '--json'])
      expect(await dry.ended).toMatchObject({ code: 1, stderr: '' })
      expect(driftsByKey(JSON.parse(dry.output.stdout) as Measurement)).toEqual(expected)
      expect(driftsByKey(await counter.reconcile({ keys: [1, 3, 8] }))).toEqual({ 1: -7, 3: 3 })
      const { 1: _, 3: __, ...rest } = expected
      expect(driftsByKey(await counter.reconcile())).toEqual(rest)
      for (let round = 0; round < 5; round++) expect(await counter.audit()).toMatchObject(clean)
      expect(await counter.reconcile()).toMatchObject(clean)
      // A correction is no event, so the other counter is not corrected by it.
      expect(driftsByKey(await tally.counter(follower).audit())).toEqual(expectedOfFollower)
      expect(driftsByKey(await tally.counter(follower).reconcile())).toEqual(expectedOfFollower)
      const written = writing.rounds
      await waitFor(async () => writing.rounds > written + 50, { what: 'more likes' })
      expect(await tally.counter(follower).audit()).toMatchObject(clean)
    }
    await expectExact(db, tally, blog)
    const own = await tally.counter(follower).getMany(range(1, 40))
    expect(Object.fromEntries([...own].filter(([, count]) => count !== 0))).toEqual(await stored(db.pool, blog))
  })

  test('of a key without a row: inserted, left alone, or kept until there is one', async () => {
    for (const onMissing of ['insert', 'drop', 'error'] as const) {
      const { blog, definition } = await createUncounted(db, 3)
      await db.pool.query(`alter table ${blog.likes} drop constraint ${blog.likes}_post_id_fkey; insert into ${blog.likes} (post_id) values (4), (4), (5)`)
      await tally.createCounter(blog.counter, { ...definition(), onMissing }, { backfill: false })
      const { driftingKeys, drifts } = await tally.counter(blog.counter).reconcile()
      expect(driftingKeys).toBe(onMissing === 'drop' ? 3 : 5)
      expect(drifts.map(({ drift }) => drift)).toEqual(onMissing === 'drop' ? [1, 1, 1] : [1, 1, 1, 2, 1])
      expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
      const { failed } = await tally.drain()
      expect(failed.some(({ error }) => error.includes('2 of the keys'))).toBe(onMissing === 'error')
      if (onMissing === 'error') await db.pool.query(`insert into ${blog.posts} values (4, 0), (5, 0)`)
      expect(await tally.drain()).toMatchObject({ failed: [] })
      expect(await stored(db.pool, blog)).toEqual({ 1: 1, 2: 1, 3: 1, ...(onMissing !== 'drop' && { 4: 2, 5: 1 }) })
      expect(await violations(db, blog.counter)).toEqual([])
      await tally.dropCounter(blog.counter)
    }
  })

  test('of a row that the application holds is corrected when that has ended, and what comes meanwhile, too', async () => {
    const blog = await createBlog(db, tally)
    await like(db.pool, blog, 1, 2)
    await like(db.pool, blog, 2, 2)
    await tally.drain()
    await spoil(db, blog)
    const holder = await db.connect()
    await holder.query(`begin; update ${blog.posts} set title = 'held' where id = 1`)
    expect(await tally.counter(blog.counter).reconcile()).toMatchObject({ driftingKeys: 10 })
    await like(db.pool, blog, 1, 4)
    await applyAll(db.pool, blog.counter)
    await db.pool.query('select pgtally.apply_carried($1)', [blog.counter])
    expect(await stored(db.pool, blog)).toEqual({ 1: 3, 2: 2 })
    expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
    expect(await tally.counter(blog.counter).reconcile()).toMatchObject(clean)
    await holder.query('commit')
    await expectExact(db, tally, blog)
  })
})

describe('several at once', () => {
  test('correct each drift once, whole or by keys', async () => {
    const blog = await createSpoiled(db, tally, 4000)
    const counter = tally.counter(blog.counter)
    const measurements = await Promise.all([
      ...range(1, 5).map(() => counter.reconcile()),
      ...range(1, 5).map(() => counter.reconcile({ keys: range(500, 2500) })),
      ...range(1, 2).map(() => counter.reconcile({ restart: true })),
    ])
    // An older one ends where another one begins anew; whoever is last has done all the rest.
    await counter.reconcile()
    expect(await corrected(db, blog)).toEqual(range(1, 4000))
    expect(measurements.reduce((sum, { driftingKeys }) => sum + driftingKeys, 0)).toBeLessThanOrEqual(4000)
    expect(await unfinished(db, blog)).toBeUndefined()
    await expectExact(db, tally, blog)
  })

  test('take one range after the other', async () => {
    const blog = await createSpoiled(db, tally, 30)
    const id = await value<string>(db.pool, 'select pgtally.begin_reconciliation($1)', [blog.counter])
    const [first, second] = [await db.connect(), await db.connect()]
    const backend = await pid(second)
    const next = (session: Session) => session.query('select last_key, checked_keys, drifting_keys from pgtally.reconcile_range($1, 10)', [id]).then(({ rows }) => rows)
    for (const last of ['10', '30']) {
      await first.query('begin')
      expect(await next(first)).toEqual([{ last_key: last, checked_keys: '10', drifting_keys: '10' }])
      const later = next(second)
      await blocked(db, backend)
      await first.query('commit')
      expect(await later).toEqual([last === '10' ? { last_key: '20', checked_keys: '10', drifting_keys: '10' } : { last_key: null, checked_keys: '0', drifting_keys: '0' }])
    }
    expect(await unfinished(db, blog)).toBeUndefined()
    await expectExact(db, tally, blog)
  })

  test('wait for one another, and the later one sees what the one before has corrected', async () => {
    const blog = await createSpoiled(db, tally, 3)
    const calls: [text: string, values: unknown[]][] = [
      ['select * from pgtally.reconcile_keys($1, $2)', [blog.counter, ['1', '2']]],
      ['select * from pgtally.reconcile_range($1)', [await value<string>(db.pool, 'select pgtally.begin_reconciliation($1)', [blog.counter])]],
    ]
    const [first, second] = [await db.connect(), await db.connect()]
    const backend = await pid(second)
    await first.query('begin')
    expect((await first.query(`select * from pgtally.reconcile_keys($1, '{1,2}')`, [blog.counter])).rows).toMatchObject([{ checked_keys: '2', drifting_keys: '2' }])
    for (const [text, values] of calls) {
      const later = second.query(text, values)
      await blocked(db, backend)
      // Batches, audits and likes do not.
      await like(db.pool, blog, 1)
      await applyAll(db.pool, blog.counter)
      expect(await tally.counter(blog.counter).audit()).toMatchObject({ driftingKeys: text.includes('keys') ? 3 : 1 })
      await first.query('commit')
      expect((await later).rows).toMatchObject([text.includes('keys') ? { checked_keys: '2', drifting_keys: '0' } : { checked_keys: '3', drifting_keys: '0' }])
      // The next round: the third key is corrected and not committed.
      await first.query('begin')
      await first.query(`select pgtally.reconcile_keys($1, '{3}')`, [blog.counter])
    }
    await first.query('rollback')
    await tally.counter(blog.counter).reconcile()
    await expectExact(db, tally, blog)
  })
})

describe('an interruption', () => {
  test('by a signal leaves the finished ranges right and the others as before; the next call goes on, unless it is to begin anew', async () => {
    const blog = await createSpoiled(db, tally, 6000)
    const counter = tally.counter(blog.counter)
    const interrupted = (options: { restart?: boolean } = {}) => {
      const abort = new AbortController()
      return counter.reconcile({ ...options, signal: abort.signal, onProgress: () => abort.abort(new Error('enough')) })
    }
    await expect(interrupted()).rejects.toThrow('enough')
    const first = await unfinished(db, blog)
    expect(first).toMatchObject({ reason: 'requested', after_key: '1000' })
    expect(await corrected(db, blog)).toEqual(range(1, 1000))
    expect(await counter.audit()).toMatchObject({ checkedKeys: 6000, driftingKeys: 5000, drifts: expect.objectContaining({ 0: expect.objectContaining({ key: '1001' }) }) })
    expect(await problems(tally, blog)).toEqual([expect.stringMatching(/reconciliation is under way.*up to the key 1000\..*pgtally reconcile/)])

    // Keys by themselves do not move it.
    expect(await counter.reconcile({ keys: [5000] })).toMatchObject({ driftingKeys: 1 })
    expect(await unfinished(db, blog)).toEqual(first)
    // New drift in what is done is for the next one.
    await db.pool.query(`update ${blog.posts} set like_count = like_count + 10 where id = 3`)
    await expect(interrupted()).rejects.toThrow('enough')
    expect(await unfinished(db, blog)).toEqual({ ...first, after_key: '2000' })
    await expect(interrupted({ restart: true })).rejects.toThrow('enough')
    const again = await unfinished(db, blog)
    expect(again).toMatchObject({ reason: 'requested', after_key: '1000' })
    expect(again?.id).not.toBe(first?.id)
    // Whoever is at the old one ends.
    expect((await db.pool.query('select * from pgtally.reconcile_range($1)', [first?.id])).rows).toEqual([{ last_key: null, checked_keys: '0', drifting_keys: '0', drifting: [] }])

    const seen: MeasureProgress[] = []
    expect(await counter.reconcile({ onProgress: (progress) => seen.push(progress) })).toMatchObject({ checkedKeys: 5000, driftingKeys: 3999 })
    expect(seen.at(-1)).toMatchObject({ checkedKeys: 5000, driftingKeys: 3999 })
    expect(await unfinished(db, blog)).toBeUndefined()
    expect(await problems(tally, blog)).toEqual([])
    await expectExact(db, tally, blog)
  })

  test(`by SIGKILL at random moments leaves the finished ranges right and the others as before (seed ${seed})`, async () => {
    // As slow for the command as a table a hundred times as large.
    await db.pool.query(`create function slow(bigint) returns boolean immutable language plpgsql as $$
      begin
        if $1 % 20 = 0 and current_setting('application_name') = 'pgtally' then perform pg_sleep(0.001); end if;
        return true;
      end $$`)
    const posts = 8000
    const blog = await createSpoiled(db, tally, posts, 'public.slow(post_id)')
    const random = new Random(seed)
    const reached: number[] = []
    const check = async (now: Unfinished | undefined, upTo: number) => {
      expect(await corrected(db, blog)).toEqual(range(1, upTo))
      const audit = await tally.counter(blog.counter).audit()
      expect({ driftingKeys: audit.driftingKeys, first: audit.drifts[0]?.key }).toEqual({ driftingKeys: posts - upTo, first: upTo === posts ? undefined : String(upTo + 1) })
      expect(upTo).toBeGreaterThanOrEqual(reached.at(-1) ?? 0)
      reached.push(upTo)
      return now?.id
    }
    const ids = new Set<string>()
    {
      await using running = new AsyncDisposableStack()
      running.use(storm(db, blog, { posts, writers: 1 }))
      // At any moment; and twice after at least one range more.
      for (const progressing of [false, true, true]) {
        await using command = startCommand(db.connectionString, ['reconcile', blog.counter])
        if (progressing) await waitFor(async () => Number((await unfinished(db, blog))?.after_key ?? 0) > (reached.at(-1) ?? 0), { what: 'progress' })
        await sleep(random.upTo(progressing ? 250 : 900))
        await command.kill()
        const left = () => value<boolean>(db.pool, `select not exists (select from pg_stat_activity where application_name = 'pgtally' and datname = current_database())`)
        await waitFor(left, { what: 'the end of its session' })
        const now = await unfinished(db, blog)
        const id = await check(now, Number(now?.after_key ?? 0))
        if (id !== undefined) ids.add(id)
      }
      await using last = startCommand(db.connectionString, ['reconcile', blog.counter])
      expect(await last.ended).toMatchObject({ code: 0, stderr: '' })
      await check(undefined, posts)
    }
    expect(await unfinished(db, blog)).toBeUndefined()
    // All of them went on with one and the same.
    expect(ids.size).toBe(1)
    await expectExact(db, tally, blog)
  })

  test('between a correction and its commit takes both back', async () => {
    const blog = await createSpoiled(db, tally, 100)
    const id = await value<string>(db.pool, 'select pgtally.begin_reconciliation($1)', [blog.counter])
    await db.pool.query('select pgtally.reconcile_range($1, 10)', [id])
    for (const call of [`reconcile_range(${id}, 10)`, `reconcile_keys('${blog.counter}', '{95,96}')`]) {
      const victim = await db.connect()
      await victim.query('begin')
      expect(await value(victim, `select drifting_keys::int from pgtally.${call}`)).toBe(call.includes('range') ? 10 : 2)
      const backend = await pid(victim)
      await db.pool.query('select pg_terminate_backend($1)', [backend])
      await waitFor(async () => value<boolean>(db.pool, 'select not exists (select from pg_stat_activity where pid = $1)', [backend]), { what: 'its end' })
      expect(await unfinished(db, blog)).toMatchObject({ id, after_key: '10' })
      expect(await corrected(db, blog)).toEqual(range(1, 10))
    }
    await tally.counter(blog.counter).reconcile()
    expect(await corrected(db, blog)).toEqual(range(1, 100))
    await expectExact(db, tally, blog)
  })

  test('by a crash of the server takes back what was not committed, and nothing else', async (context) => {
    await using server = await dedicatedServer(context)
    await using own = await createTestDatabase(server.connectionString)
    const ownTally = await installed(own)
    const blog = await createSpoiled(own, ownTally, 100)
    const id = await value<string>(own.pool, 'select pgtally.begin_reconciliation($1)', [blog.counter])
    await own.pool.query('select pgtally.reconcile_range($1, 30)', [id])
    for (const call of [`reconcile_range(${id}, 30)`, `reconcile_keys('${blog.counter}', '{95,96}')`]) {
      const victim = await own.connect()
      await victim.query('begin')
      expect(await value(victim, `select drifting_keys::int from pgtally.${call}`)).toBe(call.includes('range') ? 30 : 2)
      await server.crash()
      await server.restart()
      expect(await unfinished(own, blog)).toMatchObject({ id, after_key: '30' })
      expect(await corrected(own, blog)).toEqual(range(1, 30))
    }
    // What drain() commits need not be on disk yet. The corrections are, so it can do the same again.
    await ownTally.counter(blog.counter).reconcile()
    await ownTally.drain()
    await server.crash()
    await server.restart()
    expect(await ownTally.counter(blog.counter).audit()).toMatchObject(clean)
    await expectExact(own, ownTally, blog)
  })

  test('by the end of the counter is the end, with nothing left behind', async () => {
    const blog = await createSpoiled(db, tally, 10)
    const counterId = await value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [blog.counter])
    const id = await value<string>(db.pool, 'select pgtally.begin_reconciliation($1)', [blog.counter])
    await db.pool.query('select pgtally.reconcile_range($1, 3)', [id])
    // It waits for the range in hand; whoever comes then waits for it.
    const [reconciler, dropper, late] = [await db.connect(), await db.connect(), await db.connect()]
    const [dropping, waiting] = [await pid(dropper), await pid(late)]
    await reconciler.query('begin')
    await reconciler.query('select pgtally.reconcile_range($1, 3)', [id])
    const dropped = outcome(dropper.query('select pgtally.drop_counter($1)', [blog.counter]))
    await blocked(db, dropping)
    const lateRange = outcome(late.query('select pgtally.reconcile_range($1, 3)', [id]))
    await blocked(db, waiting)
    await reconciler.query('commit')
    expect(await dropped).toBe('done')
    expect([{ code: 'TL001' }, 'done']).toContainEqual(await lateRange.then((ended) => (ended === 'done' ? ended : { code: 'code' in ended && ended.code })))
    expect((await db.pool.query('select * from pgtally.reconcile_range($1)', [id])).rows).toMatchObject([{ last_key: null, checked_keys: '0' }])
    await expect(tally.counter(blog.counter).reconcile()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(await value(db.pool, 'select count(*)::int from pgtally.reconciliation where counter_id = $1', [counterId])).toBe(0)
    expect(await value(db.pool, `select to_regclass('pgtally.carry_${counterId}')::text`)).toBeNull()
  })
})

describe('the procedure', () => {
  test('commits each range, goes on where it was interrupted, and is refused in a transaction', async () => {
    const gate = await createGate(db, 11_000)
    const blog = await createSpoiled(db, tally, 12_000, gate.where)
    const caller = await db.connect()
    const called = outcome(caller.query('call pgtally.reconcile($1)', [blog.counter]))
    const backend = await gate.waiting()
    expect(await unfinished(db, blog)).toMatchObject({ after_key: '10000' })
    expect(await corrected(db, blog)).toEqual(range(1, 10_000))
    await db.pool.query('select pg_terminate_backend($1)', [backend])
    expect(await called).toBeInstanceOf(Error)
    await gate.open()
    expect(await corrected(db, blog)).toEqual(range(1, 10_000))
    const client = await db.connect()
    await client.query('begin')
    await expect(client.query('call pgtally.reconcile($1)', [blog.counter])).rejects.toMatchObject({ code: '2D000' })
    await client.query('rollback')
    await client.query('call pgtally.reconcile($1)', [blog.counter])
    expect(await corrected(db, blog)).toEqual(range(1, 12_000))
    expect(await unfinished(db, blog)).toBeUndefined()
    await client.query(`set default_transaction_isolation = 'repeatable read'`)
    await expect(client.query('call pgtally.reconcile($1)', [blog.counter])).rejects.toMatchObject({ code: 'TL004' })
    await expectExact(db, tally, blog)
  })
})

test('is refused where there is nothing to reconcile with', async () => {
  const blog = await createBlog(db, tally)
  await tally.createCounter('only_events', { keyType: 'text' })
  const refusals: [reconcile: () => Promise<unknown>, error: object][] = [
    [() => tally.counter('nothing').reconcile(), { code: 'NOT_FOUND' }],
    [() => tally.counter('nothing').reconcile({ keys: [1] }), { code: 'NOT_FOUND' }],
    [() => tally.counter('only_events').reconcile(), { code: 'NOT_APPLICABLE', message: expect.stringContaining('reset') }],
    [() => tally.counter('only_events').reconcile({ keys: ['a'] }), { code: 'NOT_APPLICABLE' }],
    [() => tally.counter(blog.counter).reconcile({ keys: ['one'] }), { code: '22P02' }],
    [() => db.pool.query('call pgtally.reconcile($1)', ['nothing']), { code: 'TL001' }],
    [() => db.pool.query('call pgtally.reconcile($1)', ['only_events']), { code: 'TL009' }],
  ]
  for (const [reconcile, error] of refusals) await expect(reconcile()).rejects.toMatchObject(error)
  const client = await db.connect()
  for (const call of ['begin_reconciliation($1)', `reconcile_keys($1, '{1}')`]) {
    await client.query('begin isolation level repeatable read')
    await expect(client.query(`select pgtally.${call}`, [blog.counter])).rejects.toMatchObject({ code: 'TL004' })
    await client.query('rollback')
  }
  expect(await unfinished(db, blog)).toBeUndefined()
})

test('an audit that runs all the time sees no drift while a range is corrected, added, and locked by the application', async () => {
  const blog = await createBlog(db, tally, { posts: 20 })
  await using running = new AsyncDisposableStack()
  running.use(tally.worker({ pollIntervalMs: 5 }))
  running.use(storm(db, blog, { posts: 20, writers: 2 }))
  const holder = await db.connect()
  running.use(beside(() => holder.query(`begin; select from ${blog.posts} where id % 3 = 0 for no key update; select pg_sleep(0.02); commit`)))
  for (let round = 0; round < 12; round++) {
    await db.pool.query(`update ${blog.posts} set like_count = like_count + $1 where id = any ($2)`, [round, [1, 3, 5]])
    expect(driftsByKey(await tally.counter(blog.counter).audit())).toEqual(round === 0 ? {} : { 1: -round, 3: -round, 5: -round })
    await tally.counter(blog.counter).reconcile()
    for (let look = 0; look < 3; look++) expect(await tally.counter(blog.counter).audit()).toMatchObject(clean)
  }
  await running.disposeAsync()
  await expectExact(db, tally, blog)
})
