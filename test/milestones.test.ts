import { beforeAll, describe, expect, test } from 'vitest'

import type { CounterDefinition, Tally } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { apply, applyAll, blocked, createBlog, installed, like, outcome, pid, stored, value, violations, type Blog, type Session } from './support/fixtures.ts'
import { expectExact, seed, startCommand, storm } from './support/storm.ts'
import { createUncounted } from './support/uncounted.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

const createCounted = (milestones: CounterDefinition['milestones'], posts = 10) => createBlog(db, tally, { posts, rest: { milestones } })
const unlike = (session: Session, { likes }: Blog, post: number, count = 1) =>
  session.query(`delete from ${likes} where id in (select id from ${likes} where post_id = $1 limit $2)`, [post, count])

/** What is recorded, as `key:threshold`, in that order. */
async function recorded(counter: string): Promise<string[]> {
  const { rows } = await db.pool.query<{ milestone: string }>(`select key || ':' || threshold as milestone from pgtally.get_milestones($1) order by length(key), key, threshold`, [counter])
  return rows.map(({ milestone }) => milestone)
}

/** The events so far, as `key:threshold@value`, in the same order. */
async function handedOn(counter: string): Promise<string[]> {
  const events = await value<string>(db.pool, 'select pgtally.event_table($1)::text', [`${counter}.milestones`])
  const { rows } = await db.pool.query<{ ev_key: string; ev_delta: string; ev_data: { threshold: number; value: number } }>(
    `select ev_key::text, ev_delta, ev_data from ${events} order by length(ev_key::text), ev_key, (ev_data ->> 'threshold')::bigint`,
  )
  return rows.map(({ ev_key, ev_delta, ev_data: { threshold, value: reached, ...rest } }) => {
    expect([ev_delta, rest]).toEqual(['1', {}])
    return `${ev_key}:${threshold}@${reached}`
  })
}

/** Batches, and what they have left. */
async function applyEverything({ counter }: Blog): Promise<void> {
  await applyAll(db.pool, counter)
  await db.pool.query('select pgtally.apply_packed($1), pgtally.apply_carried($1)', [counter])
}

describe('a count that reaches a threshold', () => {
  test('is recorded and handed on, each threshold of a key once for ever', async () => {
    const blog = await createCounted([2, 3, 5, 100])
    const before = Date.now()
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([[], []])
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    expect(await handedOn(blog.counter)).toEqual(['1:2@2'])
    await unlike(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    // Again, and over two more at once; another key for itself.
    await like(db.pool, blog, 1, 4)
    await like(db.pool, blog, 10, 3)
    await applyAll(db.pool, blog.counter)
    expect(await handedOn(blog.counter)).toEqual(['1:2@2', '1:3@5', '1:5@5', '10:2@3', '10:3@3'])
    await unlike(db.pool, blog, 1, 5)
    await applyAll(db.pool, blog.counter)
    await like(db.pool, blog, 1, 99)
    await applyAll(db.pool, blog.counter)
    expect(await handedOn(blog.counter)).toEqual(['1:2@2', '1:3@5', '1:5@5', '10:2@3', '10:3@3'])
    const milestones = await tally.counter<number>(blog.counter).milestones(1)
    expect(milestones).toMatchObject([{ key: '1', threshold: 2, value: 2 }, { key: '1', threshold: 3, value: 5 }, { key: '1', threshold: 5, value: 5 }])
    for (const { reachedAt } of milestones) expect(Math.abs(reachedAt.getTime() - before)).toBeLessThan(60_000)
    expect(await tally.counter(blog.counter).milestones()).toHaveLength(5)
    expect(await tally.counter<number>(blog.counter).milestones(3)).toEqual([])
    await expectExact(db, tally, blog)
  })

  test('comes with the transaction that stores it, or not at all', async () => {
    const blog = await createCounted([3])
    const client = await db.connect()
    await like(db.pool, blog, 1, 3)
    await client.query('begin')
    await apply(client, blog.counter)
    expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([[], []])
    await client.query('rollback')
    expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([[], []])
    await applyAll(db.pool, blog.counter)
    expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([['1:3'], ['1:3@3']])
  })

  test('is given to a consumer of its queue exactly once', async () => {
    const blog = await createCounted('powers of ten')
    await db.pool.query(`select pgtally.register_consumer($1, 'congratulator')`, [`${blog.counter}.milestones`])
    const next = async () => {
      const batch = await value<string | null>(db.pool, `select pgtally.next_batch($1, 'congratulator')`, [`${blog.counter}.milestones`])
      if (batch === null) return null
      const { rows } = await db.pool.query<{ ev_key: string; ev_data: object }>('select ev_key, ev_data from pgtally.get_batch_events($1)', [batch])
      await db.pool.query('select pgtally.finish_batch($1)', [batch])
      return rows
    }
    await like(db.pool, blog, 1, 12)
    await applyAll(db.pool, blog.counter)
    expect(await next()).toEqual([{ ev_key: '1', ev_data: { threshold: 10, value: 12 } }])
    await unlike(db.pool, blog, 1, 5)
    await applyAll(db.pool, blog.counter)
    await like(db.pool, blog, 1, 5)
    await applyAll(db.pool, blog.counter)
    expect(await next()).toBeNull()
    // Somebody listens.
    await expect(tally.dropCounter(blog.counter)).rejects.toMatchObject({ code: 'IN_USE', message: expect.stringContaining('congratulator') })
    expect(await recorded(blog.counter)).toEqual(['1:10'])
  })

  test('in a packed row, a carried one, and one that is waited for', async () => {
    const blog = await createCounted([2, 3], 1000)
    const holder = await db.connect()
    await holder.query('begin')
    await holder.query(`select from ${blog.posts} where id = 1 for no key update`)
    await db.pool.query(`insert into ${blog.likes} (post_id) select id from ${blog.posts}, generate_series(1, 2)`)
    await db.pool.query('select pgtally.apply_batch($1, max_keys => 300)', [blog.counter])
    const added = await handedOn(blog.counter)
    expect(added.length).toBeGreaterThan(200)
    expect(added.length).toBeLessThan(301)
    while ((await value(db.pool, 'select keys from pgtally.apply_packed($1)', [blog.counter])) !== null);
    expect(await handedOn(blog.counter)).toEqual(Array.from({ length: 999 }, (_, index) => `${index + 2}:2@2`))
    const waiter = await db.connect()
    const waiting = outcome(waiter.query(`select pgtally.wait_for_carried($1, interval '0', interval '20 seconds')`, [blog.counter]))
    await blocked(db, await value<number>(db.pool, `select pid from pg_stat_activity where query like '%wait_for_carried%' and datname = current_database() and pid <> pg_backend_pid()`))
    await holder.query('commit')
    expect(await waiting).toBe('done')
    expect((await handedOn(blog.counter))[0]).toBe('1:2@2')
    // One carried by itself.
    await holder.query('begin')
    await holder.query(`select from ${blog.posts} where id = 1 for no key update`)
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    await holder.query('commit')
    expect(await handedOn(blog.counter)).toHaveLength(1000)
    await applyEverything(blog)
    expect((await handedOn(blog.counter)).slice(0, 2)).toEqual(['1:2@2', '1:3@3'])
    await expectExact(db, tally, blog)
  })

  test('in a table of pgtally’s own, with text and uuid keys', async () => {
    await tally.createCounter('visits', { keyType: 'text', milestones: [1, 2] })
    await tally.counter('visits').add(db.pool, "it's", 5)
    await applyAll(db.pool, 'visits')
    expect(await handedOn('visits')).toEqual(["it's:1@5", "it's:2@5"])
    await tally.createCounter('uuids', { keyType: 'uuid', milestones: [1] })
    const key = '0F8FAD5B-D9CB-469F-A165-70867728950E'
    await tally.counter('uuids').add(db.pool, key)
    await applyAll(db.pool, 'uuids')
    expect(await tally.counter('uuids').milestones(key)).toMatchObject([{ key: key.toLowerCase(), threshold: 1 }])
  })

  test('of the powers of ten, up to the largest count that there is', async () => {
    await tally.createCounter('huge', { keyType: 'text', milestones: 'powers of ten' })
    const huge = tally.counter<string>('huge')
    await huge.add(db.pool, 'k', 2n ** 63n - 1n)
    await applyAll(db.pool, 'huge')
    expect((await huge.milestones('k', { bigint: true })).map(({ threshold, value: reached }) => [threshold, reached])).toEqual(
      Array.from({ length: 18 }, (_, index) => [10n ** BigInt(index + 1), 2n ** 63n - 1n]),
    )
    await expect(huge.milestones('k')).rejects.toMatchObject({ code: 'UNSAFE_COUNT' })
    await huge.add(db.pool, 'k', -(2n ** 63n - 1n))
    await applyAll(db.pool, 'huge')
    await huge.add(db.pool, 'k', 2n ** 63n - 1n)
    await applyAll(db.pool, 'huge')
    expect(await handedOn('huge')).toHaveLength(18)
  })
})

describe('rows that existed before', () => {
  const uncounted = async (likes: Record<number, number>, before: Record<number, number> = {}) => {
    const { blog, definition } = await createUncounted(db)
    for (const [post, count] of Object.entries(likes)) await like(db.pool, blog, Number(post), count - 1)
    for (const [post, count] of Object.entries(before)) await db.pool.query(`update ${blog.posts} set like_count = $2 where id = $1`, [post, count])
    return { blog, definition: () => ({ ...definition(), milestones: [5, 10, 20] }) }
  }

  test('are recorded by the backfill and not handed on; what comes on top is', async () => {
    // Post 3 was counted by the application; 4 too high, 5 too low.
    const { blog, definition } = await uncounted({ 1: 12, 2: 4, 3: 10, 4: 9, 5: 6 }, { 3: 10, 4: 10, 5: 4 })
    await tally.createCounter(blog.counter, definition())
    await like(db.pool, blog, 1)
    await applyEverything(blog)
    expect(await recorded(blog.counter)).toEqual(['1:5', '1:10', '3:5', '3:10', '4:5', '5:5'])
    expect(await handedOn(blog.counter)).toEqual([])
    await unlike(db.pool, blog, 3, 6)
    await applyAll(db.pool, blog.counter)
    for (const post of [2, 4, 5]) await like(db.pool, blog, post, 1)
    await like(db.pool, blog, 3, 6)
    await like(db.pool, blog, 1, 7)
    await applyAll(db.pool, blog.counter)
    expect(await handedOn(blog.counter)).toEqual(['1:20@20', '2:5@5', '4:10@10'])
    await expectExact(db, tally, blog)
  })

  test('a like that carries over a threshold while the backfill is unfinished is recorded only', async () => {
    const { blog, definition } = await uncounted({ 1: 4, 7: 17, 8: 4 })
    await tally.createCounter(blog.counter, definition(), { backfill: false })
    const range = async () => value<string | null>(db.pool, 'select last_key from pgtally.reconcile_range(pgtally.begin_reconciliation($1), 5)', [blog.counter])
    expect(await range()).toBe('5')
    // Post 1 was measured, the others were not: 5 likes of what are 22 are no milestone.
    await like(db.pool, blog, 1)
    await like(db.pool, blog, 7, 5)
    await applyEverything(blog)
    expect(await recorded(blog.counter)).toEqual(['1:5', '7:5'])
    await like(db.pool, blog, 8)
    expect(await range()).toBe('10')
    expect(await range()).toBeNull()
    // Added after the backfill.
    await applyEverything(blog)
    expect(await recorded(blog.counter)).toEqual(['1:5', '7:5', '7:10', '7:20', '8:5'])
    expect(await handedOn(blog.counter)).toEqual(['8:5@5'])
    await expectExact(db, tally, blog)
  })

  test('a like that was pending when its key was measured is news, whenever the correction is added', async () => {
    for (const correctionFirst of [true, false]) {
      const { blog, definition } = await uncounted({ 1: 9, 2: 4 })
      await tally.createCounter(blog.counter, definition(), { backfill: false })
      await like(db.pool, blog, 1)
      await like(db.pool, blog, 2)
      await tally.counter(blog.counter).reconcile()
      // Otherwise both together.
      if (correctionFirst) await db.pool.query('select pgtally.apply_carried($1)', [blog.counter])
      await applyAll(db.pool, blog.counter)
      expect(await handedOn(blog.counter)).toEqual(['1:10@10', '2:5@5'])
      expect(await recorded(blog.counter)).toEqual(['1:5', '1:10', '2:5'])
      await expectExact(db, tally, blog)
    }
  })

  test('a batch that misses the corrections of a backfill does not take it for ended', async () => {
    const { blog, definition } = await uncounted({ 1: 18 })
    await tally.createCounter(blog.counter, definition(), { backfill: false })
    const [holder, batch] = [await db.connect(), await db.connect()]
    await holder.query(`begin; update ${blog.posts} set like_count = like_count where id = 1`)
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    await holder.query('commit')
    // What is carried is held, so that a batch stands still where it takes it.
    const carry = await value<string>(db.pool, `select 'pgtally.carry_' || counter_id from pgtally.counter where name = $1`, [blog.counter])
    await holder.query(`begin; select from ${carry} for update`)
    await like(db.pool, blog, 1, 4)
    const batchPid = await pid(batch)
    const applied = outcome(apply(batch, blog.counter))
    await blocked(db, batchPid)
    await tally.counter(blog.counter).reconcile()
    await holder.query('rollback')
    expect(await applied).toBe('done')
    expect(await stored(db.pool, blog)).toEqual({ 1: 5 })
    expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([['1:5'], []])
    // 19 when it was measured, and 4 more since.
    await applyEverything(blog)
    expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([['1:5', '1:10', '1:20'], ['1:20@23']])
    await expectExact(db, tally, blog)
  })

  test('that a reconciliation finds are recorded only, and routine ones swallow nothing', async () => {
    const blog = await createCounted([5, 10])
    await db.pool.query(`alter table ${blog.likes} disable trigger user`)
    await like(db.pool, blog, 1, 7)
    await db.pool.query(`alter table ${blog.likes} enable trigger user`)
    // Post 3's are carried when it is measured, and the others' are pending.
    const holder = await db.connect()
    await holder.query(`begin; update ${blog.posts} set like_count = like_count where id = 3`)
    await like(db.pool, blog, 3, 5)
    await applyAll(db.pool, blog.counter)
    await like(db.pool, blog, 1, 3)
    await like(db.pool, blog, 2, 5)
    const reconciled = await tally.counter(blog.counter).reconcile()
    expect(reconciled.drifts).toMatchObject([{ key: '1', drift: 7, pending: 3 }])
    await holder.query('commit')
    await applyEverything(blog)
    expect(await recorded(blog.counter)).toEqual(['1:5', '1:10', '2:5', '3:5'])
    expect(await handedOn(blog.counter)).toEqual(['1:10@10', '2:5@5', '3:5@5'])
    await expectExact(db, tally, blog)
  })

  test('that somebody wrote into the target are nothing that we have carried over a threshold', async () => {
    const blog = await createCounted([5, 10])
    await db.pool.query(`update ${blog.posts} set like_count = 7 where id = 1`)
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([[], []])
    await like(db.pool, blog, 1, 2)
    await applyAll(db.pool, blog.counter)
    expect(await handedOn(blog.counter)).toEqual(['1:10@10'])
  })

  test('in the target of a counter without a source are recorded when it is created', async () => {
    await db.pool.query(`create table viewed (page text primary key, views integer); insert into viewed values ('/a', 12), ('/b', 4), ('/c', null)`)
    await tally.createCounter('views', { target: { table: 'viewed', key: 'page', column: 'views' }, milestones: [5, 10] })
    expect(await recorded('views')).toEqual(['/a:5', '/a:10'])
    const views = tally.counter<string>('views')
    await views.add(db.pool, '/a', -9)
    await applyAll(db.pool, 'views')
    for (const [page, views_] of [['/a', 9], ['/b', 1]] as const) await views.add(db.pool, page, views_)
    await applyAll(db.pool, 'views')
    expect(await handedOn('views')).toEqual(['/b:5@5'])
    // A reset neither takes milestones away nor makes new ones.
    await views.resetAll()
    await db.pool.query(`select pgtally.apply_carried('views')`)
    await views.add(db.pool, '/b', 6)
    await applyAll(db.pool, 'views')
    expect(await handedOn('views')).toEqual(['/b:5@5'])
  })

  test(`with likes, unlikes and workers under way (seed ${seed})`, async () => {
    const { blog, definition } = await createUncounted(db, 2000)
    await db.pool.query(`insert into ${blog.likes} (post_id) select 1 + g % 20 from generate_series(1, 1000) g`)
    await using running = new AsyncDisposableStack()
    for (let n = 0; n < 2; n++) running.use(tally.worker({ pollIntervalMs: 5 }))
    await tally.createCounter(blog.counter, { ...definition(), milestones: [2, 3, 5, 10, 20, 50, 60, 80, 100, 150, 200, 300] }, { backfill: false })
    const writing = running.use(storm(db, blog, { posts: 25, writers: 3 }))
    await waitFor(async () => writing.rounds > 20, { what: 'likes before the backfill' })
    await tally.counter(blog.counter).reconcile()
    for (let times = 0; times < 3; times++) {
      const written = writing.rounds
      await waitFor(async () => writing.rounds > written + 30, { what: 'likes afterwards' })
      await tally.counter(blog.counter).reconcile()
    }
    await writing.stop()
    await expectExact(db, tally, blog)
    const events = await handedOn(blog.counter)
    const records = await recorded(blog.counter)
    expect(new Set(events.map((event) => event.replace(/@.*/, ''))).size).toBe(events.length)
    expect(records).toEqual(expect.arrayContaining(events.map((event) => event.replace(/@.*/, ''))))
    for (const event of events) {
      const [key, threshold, reached] = event.split(/[:@]/).map(Number) as [number, number, number]
      expect(reached).toBeGreaterThanOrEqual(threshold)
      // 51 likes each were there before, and likes come in faster than they go.
      expect([event, key > 20 || threshold > 10]).toEqual([event, true])
    }
    const missing = await db.pool.query(`
      select p.id, threshold from ${blog.posts} p, pgtally.counter k, unnest(k.milestones) threshold where k.name = $1 and like_count >= threshold
        and not exists (select from pgtally.milestone m where m.counter_id = k.counter_id and m.key = p.id::text and m.threshold = threshold)`, [blog.counter])
    expect(missing.rows).toEqual([])
  })
})

describe('the definition', () => {
  test('is compared as the rest of it is', async () => {
    const definition = { keyType: 'text', milestones: [10, 20] } as const
    expect(await tally.createCounter('compared', definition)).toBe(true)
    expect(await tally.createCounter('compared', definition)).toBe(false)
    const conflict = (message: RegExp) => ({ code: 'DEFINITION_CONFLICT', message: expect.stringMatching(message) })
    await expect(tally.createCounter('compared', { keyType: 'text' })).rejects.toMatchObject(conflict(/milestones is \[10, 20\], not none/))
    await expect(tally.createCounter('compared', { ...definition, milestones: [10] })).rejects.toMatchObject(conflict(/milestones is \[10, 20\], not \[10\]/))
    expect(await tally.createCounter('ruled', { keyType: 'text', milestones: 'powers of ten' })).toBe(true)
    expect(await tally.createCounter('ruled', { keyType: 'text', milestones: 'powers of ten' })).toBe(false)
  })

  test.each([[[]], [[0]], [[-1]], [[1.5]], [[2 ** 53]], [[20, 10]], [[10, 10]], [Array.from({ length: 101 }, (_, index) => index + 1)], ['powers of two'], [7]])('%j will not do', async (milestones) => {
    await expect(tally.createCounter('refused', { keyType: 'text', milestones: milestones as number[] })).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringContaining('milestones') })
  })

  test('a queue that is there already is not taken', async () => {
    await db.pool.query(`select pgtally.create_queue('taken.milestones', 'text')`)
    await expect(tally.createCounter('taken', { keyType: 'text', milestones: [1] })).rejects.toMatchObject({ code: 'DEFINITION_CONFLICT', message: expect.stringContaining('taken.milestones') })
    expect(await value(db.pool, `select count(*)::int from pgtally.counter where name = 'taken'`)).toBe(0)
  })

  test('on the command line', async () => {
    const create = (milestones: string) => startCommand(db.connectionString, ['counter', 'create', 'typed', '--key-type', 'text', '--milestones', milestones]).ended
    expect(await create('100,1000')).toMatchObject({ code: 0 })
    expect(await value(db.pool, `select milestones::text from pgtally.counter where name = 'typed'`)).toBe('{100,1000}')
    expect(await create('powers-of-ten')).toMatchObject({ code: 1, stderr: expect.stringContaining('milestones is [100, 1000], not [10, 100, 1000,') })
    expect(await create('100,x')).toMatchObject({ code: 2, stderr: expect.stringContaining('--milestones') })
  })

  test('milestones and their queue go with the counter, and not before', async () => {
    const blog = await createCounted([1])
    await like(db.pool, blog, 1)
    await applyAll(db.pool, blog.counter)
    const queue = `${blog.counter}.milestones`
    await expect(db.pool.query('select pgtally.drop_queue($1)', [queue])).rejects.toMatchObject({ code: 'TL010' })
    // A counter of the milestones is one more reader; its queue stays when it goes.
    await tally.createCounter('of_milestones', { queue })
    await like(db.pool, blog, 2)
    await applyAll(db.pool, blog.counter)
    await applyAll(db.pool, 'of_milestones')
    expect(await tally.counter('of_milestones').get(2)).toBe(1)
    await tally.dropCounter('of_milestones')
    await like(db.pool, blog, 3)
    await applyAll(db.pool, blog.counter)
    expect(await handedOn(blog.counter)).toHaveLength(3)
    const id = await value<number>(db.pool, 'select counter_id from pgtally.counter where name = $1', [blog.counter])
    await tally.dropCounter(blog.counter)
    expect(await value(db.pool, 'select count(*)::int from pgtally.milestone where counter_id = $1', [id])).toBe(0)
    expect(await value(db.pool, 'select count(*)::int from pgtally.queue where name = $1', [queue])).toBe(0)
    await expect(tally.counter(blog.counter).milestones()).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('without milestones the target is updated by the same statement as ever', async () => {
    const updateOf = async (milestones: CounterDefinition['milestones']) => {
      const blog = await createCounted(milestones)
      await db.pool.query(`
        create table ${blog.posts}_log (context text);
        create function ${blog.posts}_log() returns trigger language plpgsql as $$
        declare context text;
        begin
          get diagnostics context = pg_context;
          insert into ${blog.posts}_log values (context);
          return new;
        end $$;
        create trigger log before update on ${blog.posts} for each row execute function ${blog.posts}_log()`)
      await like(db.pool, blog, 1)
      await applyAll(db.pool, blog.counter)
      const context = await value<string>(db.pool, `select context from ${blog.posts}_log`)
      return /SQL statement "(.*?)"\nPL/s.exec(context)?.[1]?.replaceAll(/\s+/g, ' ').replaceAll(blog.posts, 'posts').trim()
    }
    const plain = 'update public.posts t set like_count = coalesce(t.like_count, 0) operator(pg_catalog.+) u.delta from unnest($1, $2) u(key, delta) where t.id operator(pg_catalog.=) u.key and u.delta operator(pg_catalog.<>) 0 and t.id operator(pg_catalog.=) any ($3)'
    expect(await updateOf(undefined)).toBe(plain)
    expect(await updateOf([10])).toContain(`${plain} returning`)
  })
})

test('a constraint of the target that objects leaves no milestone', async () => {
  const blog = await createBlog(db, tally, { countColumn: 'like_count bigint not null default 0 check (like_count < 4)', rest: { milestones: [2] } })
  await like(db.pool, blog, 1, 5)
  await expect(apply(db.pool, blog.counter)).rejects.toMatchObject({ code: '23514' })
  expect([await recorded(blog.counter), await handedOn(blog.counter)]).toEqual([[], []])
  await unlike(db.pool, blog, 1, 2)
  await applyAll(db.pool, blog.counter)
  expect(await handedOn(blog.counter)).toEqual(['1:2@3'])
  expect(await stored(db.pool, blog)).toEqual({ 1: 3 })
  expect(await violations(db, blog.counter)).toEqual([])
})
