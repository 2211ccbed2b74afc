import { expect } from 'vitest'

import type { EmbeddedServer } from '../../src/demo/embedded-server.ts'
import { createTally, type Tally } from '../../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './database.ts'
import { apply, applyAll, installed, value, type Session } from './fixtures.ts'

// Everything carries the number of its phase, so that a consumer's share can be told.
export const phases = { finished: 1, batchAtDump: 2, pending: 3, carried: 4, restored: 5, newcomer: 6, open: 7, rebased: 8 }
export const queues = ['post_likes', 'views']
export const everSince = { done: 0, behind: 0, reading: 0, sharing: 0 }
const posts = 60
/** How often write() has begun. */
export let written = 0

/** Likes of two posts, and two views: of one page only this once, and of one that has many. Twice each within subtransactions. */
export async function write(session: Session, phase: number): Promise<void> {
  const own = ++written
  await session.query(`
    insert into likes (post_id, phase) values (${1 + (own % posts)}, ${phase}), (1, ${phase});
    do $$ begin
      begin insert into likes (post_id, phase) values (${1 + (own % posts)}, ${phase}); exception when division_by_zero then null; end;
      begin perform pgtally.add_event('views', 'sub ${own}'); exception when division_by_zero then null; end;
    end $$;
    select pgtally.add_event('views', 'only ${own}', 3), pgtally.add_event('views', 'home', 2);
    insert into added values ('only ${own}', 3, ${phase}), ('home', 2, ${phase}), ('sub ${own}', 1, ${phase})`)
}

async function takeBatch(client: Session, queue: string, consumer: string): Promise<boolean> {
  const opened = consumer === 'sharing' ? `claim_batch($1, $2, '0')` : 'next_batch($1, $2) n(batch_id)'
  await client.query('begin')
  const { rows } = await client.query<{ batch_id: string | null; claim?: number }>(`select * from pgtally.${opened}`, [queue, consumer])
  const { batch_id: batch = null, claim = 0 } = rows[0] ?? {}
  if (batch !== null) {
    await client.query('insert into received select $2, $3, ev_key, ev_delta from pgtally.get_batch_events($1)', [batch, queue, consumer])
    await client.query('select pgtally.finish_batch($1, $2)', [batch, claim])
  }
  await client.query('commit')
  return batch !== null
}

/** All that a consumer can have; what it was given is kept, exactly once, by the same transaction. */
export async function take(db: TestDatabase, consumer: string): Promise<void> {
  const client = await db.connect()
  for (const queue of queues) {
    while (await takeBatch(client, queue, consumer));
  }
  await client.end()
}

export async function takeAll(db: TestDatabase, ...others: string[]): Promise<void> {
  for (const consumer of [...Object.keys(everSince), ...others]) await take(db, consumer)
  await createTally({ pool: db.pool }).drain()
}

/** An application with something at every stage: finished, in an open batch, pending, carried, and a transaction in progress. */
export async function createApplication(server: EmbeddedServer): Promise<TestDatabase> {
  const db = await createTestDatabase(server.connectionString)
  const tally = await installed(db)
  await db.pool.query(`
    create table posts (id bigint primary key, like_count bigint not null default 0);
    insert into posts select generate_series(1, ${posts});
    create table likes (post_id bigint references posts, phase integer not null);
    create table added (key text, delta bigint, phase integer not null);
    create table received (queue text, consumer text, key text, delta bigint)`)
  const rotationPeriodMs = 1000
  await tally.createCounter('post_likes', { source: { table: 'likes', key: 'post_id' }, target: { table: 'posts', key: 'id', column: 'like_count' }, rotationPeriodMs })
  await tally.createCounter('likers', { queue: 'post_likes' })
  await tally.createCounter('views', { keyType: 'text', rotationPeriodMs })
  for (const consumer of Object.keys(everSince)) for (const queue of queues) await db.pool.query('select pgtally.register_consumer($1, $2)', [queue, consumer])

  const applyCounters = async () => {
    for (const counter of ['post_likes', 'likers', 'views']) await applyAll(db.pool, counter)
  }
  const slotsUsed = () => value<number>(db.pool, `select count(distinct ev_slot)::int from pgtally.event_1`)
  const [straddling, inProgress, locker] = await Promise.all([db.connect(), db.connect(), db.connect()])
  // In more than one slot, all of them consumed.
  await waitFor(async () => {
    await write(db.pool, phases.finished)
    return (await slotsUsed()) > 1
  }, { what: 'events in two slots' })
  await straddling.query('begin')
  await write(straddling, phases.pending)
  await applyCounters()
  for (const consumer of Object.keys(everSince)) await take(db, consumer)
  await write(db.pool, phases.batchAtDump)
  await straddling.query('commit')
  for (const queue of queues) await db.pool.query(`select pgtally.next_batch($1, 'reading')`, [queue])
  // Of two batches at work at once, the later one is finished.
  const claim = (queue: string) => value<string>(db.pool, `select batch_id from pgtally.claim_batch($1, 'sharing', '1 hour', in_order => false)`, [queue])
  const earlier = await Promise.all(queues.map(claim))
  await write(db.pool, phases.pending)
  for (const queue of queues) {
    const batch = await claim(queue)
    await db.pool.query(`insert into received select $2, 'sharing', ev_key, ev_delta from pgtally.get_batch_events($1)`, [batch, queue])
    await db.pool.query('select pgtally.finish_batch($1, 1)', [batch])
  }
  for (const batch of earlier) await db.pool.query(`select pgtally.renew_claim($1, 1, '0')`, [batch])
  await take(db, 'done')
  // Post 1, which every like is for.
  await locker.query('begin; select from posts where id = 1 for no key update')
  await write(db.pool, phases.carried)
  expect(await apply(db.pool, 'post_likes')).toMatchObject({ carried: 1 })
  await inProgress.query('begin')
  await write(inProgress, phases.pending)
  await db.pool.query('delete from likes where ctid in (select ctid from likes where post_id = 1 limit 2)')
  await write(db.pool, phases.pending)
  return db
}

/** What the consumers were given too often or not often enough. */
export async function wrong(db: TestDatabase, since: Record<string, number>): Promise<unknown[]> {
  const { rows } = await db.pool.query(
    `with consumers as (select key as consumer, value::int as since from json_each_text($1)),
    events as (
      select 'post_likes' as queue, post_id::text as key, 1 as delta, phase from likes
      union all select 'views', key, delta, phase from added
    ),
    balance as (
      select queue, consumer, key, delta as wanted, 0 as given from consumers join events on phase >= since
      union all select queue, consumer, key, 0, delta from received
    )
    select queue, consumer, key, sum(wanted)::int as wanted, sum(given)::int as given from balance group by 1, 2, 3 having sum(wanted) <> sum(given)`,
    [JSON.stringify(since)],
  )
  return rows
}

export async function expectExactCounts(db: TestDatabase, tally: Tally): Promise<void> {
  for (const counter of ['post_likes', 'likers']) expect(await tally.counter(counter).audit()).toMatchObject({ driftingKeys: 0 })
  const { rows } = await db.pool.query<{ key: string; count: string }>('select key, sum(delta) as count from added group by key')
  const fresh = await tally.counter<string>('views').getMany(rows.map(({ key }) => key), { fresh: true })
  expect(Object.fromEntries([...fresh].map(([key, { count }]) => [key, count]))).toEqual(Object.fromEntries(rows.map(({ key, count }) => [key, Number(count)])))
}

const positions = (db: TestDatabase) => value<Record<string, string>>(db.pool, `select json_object_agg(consumer_id, pgtally.consumer_position(consumer_id)) from pgtally.consumer`)
const eventCount = (db: TestDatabase, queue: number) => value<number>(db.pool, `select count(*)::int from pgtally.event_${queue}`)
export const eventTables = ['pgtally.event_1', 'pgtally.event_2']
export const eventCounts = async (db: TestDatabase): Promise<[number, number]> => [await eventCount(db, 1), await eventCount(db, 2)]

/** Takes a restored application over to its new cluster, while it goes on working. Gives what consumers were then given wrongly. */
export async function goOn(db: TestDatabase, rebase: (tally: Tally) => Promise<unknown> = (tally) => tally.rebase()): Promise<unknown[]> {
  const tally = createTally({ pool: db.pool })
  const since: Record<string, number> = { ...everSince }
  const [before, after] = await Promise.all([db.connect(), db.connect()])
  await using worker = tally.worker({ pollIntervalMs: 10 })

  const errors = async () => (await tally.status()).counters.map(({ lastError }) => lastError ?? '')
  await waitFor(async () => (await errors()).every((error) => /another database cluster.*Run: pgtally rebase/.test(error)), { what: 'all counters to say why they wait' })
  for (const { problems } of (await tally.status()).counters) expect(problems).toEqual([expect.stringContaining('Run: pgtally rebase')])
  const refused = [() => tally.counter('post_likes').audit(), () => tally.counter('likers').get(1, { fresh: true }), () => tally.counter('views').get('home', { fresh: true })]
  for (const read of refused) {
    await expect(read()).rejects.toMatchObject({ code: 'OTHER_CLUSTER', message: expect.stringContaining('Run: pgtally rebase') })
  }
  await expect(take(db, 'behind')).rejects.toMatchObject({ code: 'TL005' })
  const restoredEvents = await eventCounts(db)
  const restoredPositions = await positions(db)

  await write(db.pool, phases.restored)
  for (const session of [before, after]) {
    await session.query('begin; savepoint s')
    await write(session, phases.open)
  }
  since['newcomer'] = phases.newcomer
  for (const queue of queues) await db.pool.query(`select pgtally.register_consumer($1, 'newcomer')`, [queue])
  await write(db.pool, phases.newcomer)
  await before.query('commit')
  const kept = await eventCounts(db)
  for (const [index, count] of kept.entries()) expect(count).toBeGreaterThan(restoredEvents[index] ?? Infinity)
  expect(await positions(db)).toMatchObject(restoredPositions)

  await rebase(tally)
  await write(db.pool, phases.rebased)
  await after.query('commit')
  expect(await tally.rebase()).toEqual([])

  await takeAll(db, 'newcomer')
  await expectExactCounts(db, tally)
  expect(await errors()).toEqual(['', '', ''])
  await worker.stop()
  return wrong(db, since)
}
