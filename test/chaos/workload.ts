import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { from as copyFrom } from 'pg-copy-streams'

import type { Tally } from '../../src/index.ts'
import { createCounterBySql } from '../support/times.ts'
import type { Random } from './random.ts'

const keys = 40

export const tables = `
  create table posts (id bigint primary key, like_count integer not null default 0, timed_count bigint not null default 0, title text);
  insert into posts (id) select generate_series(1, ${keys});
  create table likes (
    id bigint generated always as identity primary key,
    post_id bigint references posts on delete cascade,
    kind text not null default 'up',
    weight integer,
    at timestamptz default clock_timestamp()
  );
  create index on likes (post_id);
  create table hits (page integer, day integer not null, n smallint not null default 1) partition by range (day);
  create table hits_1 partition of hits for values from (0) to (5);
  create table hits_2 partition of hits for values from (5) to (10) partition by list (day);
  create table hits_2_even partition of hits_2 for values in (6, 8);
  create table hits_2_odd partition of hits_2 for values in (5, 7, 9);`

/** A column of the user's table, two tables of pgtally's own, one of them following another's queue, a partitioned source, and one that keeps everything that can be kept by time, of seconds even. */
export async function createCounters(tally: Tally, pool: pg.Pool): Promise<void> {
  const rotationPeriodMs = 1000
  const source = { table: 'likes', key: 'post_id' }
  await tally.createCounter('post_likes', { source, target: { table: 'posts', key: 'id', column: 'like_count' }, rotationPeriodMs })
  await tally.createCounter('follower', { queue: 'post_likes', keyType: 'bigint' })
  await tally.createCounter('weights', { source: { ...source, where: `kind = 'up'`, sum: 'weight' }, rotationPeriodMs })
  await tally.createCounter('page_hits', { source: { table: 'hits', key: 'page' }, rotationPeriodMs })
  await createCounterBySql(pool, 'timed', {
    source: `'likes'`, source_key: `'post_id'`, source_time: `'at'`, where_condition: `'kind = ''up'''`, sum_expression: `'weight'`,
    target: `'posts'`, target_key: `'id'`, target_column: `'timed_count'`, rotation_period: `'1 second'`, ranking: 'true', half_lives: `'{1 minute,1 day}'`,
    buckets: `'[{"width": "1 second", "retain": "4 seconds"}, {"width": "1 hour", "retain": "2 days"}, {"width": "1 day", "retain": "forever", "time_zone": "Europe/Berlin"}]'`,
  })
  await tally.counter('timed').reconcile()
}

type Act = (client: pg.Client, random: Random) => Promise<void>

// Half of everything on one hot post.
const post = (random: Random) => (random.next() < 0.5 ? 1 : random.upTo(keys))

const insertLike: Act = async (client, random) => {
  await client.query('insert into likes (post_id, kind, weight, at) values ($1, $2, $3, clock_timestamp() - $4::interval)', [
    random.next() < 0.02 ? null : post(random),
    random.pick(['up', 'down']),
    random.next() < 0.05 ? null : random.upTo(5),
    // A few have no time, and a few come from a clock that is ahead.
    random.next() < 0.02 ? null : random.pick(['0', '0', '0', '2 seconds', '7 seconds', '90 minutes', '60 hours', '400 days', '-3 seconds', '-2 minutes']),
  ])
}

const insertMany: Act = async (client, random) => {
  await client.query(
    `insert into likes (post_id, kind, weight, at) select 1 + floor(random() * ${keys}), case when random() < 0.5 then 'up' else 'down' end, n % 4, clock_timestamp() - random() ^ 6 * interval '100 days'
    from generate_series(1, $1) n`,
    [random.upTo(200)],
  )
}

const updateLikes: Act = async (client, random) => {
  const set = random.pick(['post_id = $1', `kind = case kind when 'up' then 'down' else 'up' end, weight = $1`, 'weight = weight + $1', 'kind = kind', `at = at - $1::int * interval '1 second'`, `at = clock_timestamp() - $1::int * interval '1 hour'`])
  await client.query(`update likes set ${set} where post_id = $2 and id % 7 = $3 ${set.includes('$1') ? '' : 'and $1::int > 0'}`, [
    post(random),
    random.upTo(keys),
    random.upTo(7) - 1,
  ])
}

const deleteLikes: Act = async (client, random) => {
  await client.query('delete from likes where post_id = $1 and id % 3 = $2', [post(random), random.upTo(3) - 1])
}

const copyLikes: Act = async (client, random) => {
  const lines = Array.from({ length: random.upTo(100) }, () => `${post(random)}\tup\t${random.upTo(3)}\n`)
  await pipeline(lines, client.query(copyFrom('copy likes (post_id, kind, weight) from stdin')))
}

/** Cascades to the likes. The post's number is not used again. */
const replacePost: Act = async (client, random) => {
  await client.query('delete from posts where id = (select id from posts where id > 1 order by random() limit 1 for update skip locked)')
  await client.query(`insert into posts (id) values ((select coalesce(max(id), 0) from posts) + $1) on conflict do nothing`, [random.upTo(3)])
}

const editPost: Act = async (client, random) => {
  await client.query('update posts set title = $2 where id = $1', [post(random), String(random.next())])
}

const hitPages: Act = async (client, random) => {
  const [page, day] = [random.upTo(20), random.upTo(10) - 1]
  const leaf = day < 5 ? 'hits_1' : day % 2 === 0 ? 'hits_2_even' : 'hits_2_odd'
  const statement = random.pick([
    'insert into hits values ($1, $2)',
    `insert into ${leaf} values ($1, $2)`,
    'update hits set day = $2 where page = $1 and day <> $2',
    'update hits set page = $1 where day = $2',
    `delete from ${leaf} where page = $1 and day = $2`,
    'delete from hits where page = $1 and day < $2',
  ])
  await client.query(statement, [page, day])
}

const truncateHits: Act = async (client, random) => {
  await client.query(`truncate ${random.pick(['hits', 'hits_1', 'hits_2', 'hits_2_odd'])}`)
}

const acts: [Act, ...Act[]] = [
  insertLike,
  ...Array<Act>(8).fill(insertLike),
  ...Array<Act>(6).fill(hitPages),
  insertMany,
  updateLikes,
  updateLikes,
  deleteLikes,
  copyLikes,
  replacePost,
  editPost,
]

/** One transaction: some acts, of which some are taken back by savepoints; committed, prepared, or rolled back. */
async function transaction(client: pg.Client, random: Random, longMs: number): Promise<void> {
  const isolation = random.pick(['READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE'])
  await client.query(`begin isolation level ${isolation}`)
  const truncating = longMs === 0 && isolation === 'READ COMMITTED' && random.next() < 0.02
  const count = random.upTo(4)
  for (let i = 0; i < count; i++) {
    const nested = random.next() < 0.3
    if (nested) await client.query('savepoint s')
    // A long one only inserts: the others would spend the time waiting for its rows.
    const act = truncating ? truncateHits : longMs > 0 ? random.pick([insertLike, insertMany, copyLikes]) : random.pick(acts)
    await act(client, random)
    if (nested) await client.query(random.next() < 0.5 ? 'rollback to s' : 'release s')
    if (longMs > 0) await sleep(longMs / count)
  }
  const ending = random.next()
  if (ending < 0.1) {
    await client.query('rollback')
  } else if (ending < 0.2) {
    const gid = `chaos_${random.upTo(2 ** 31)}`
    await client.query(`prepare transaction '${gid}'`)
    await sleep(random.upTo(300))
    await client.query(`${random.pick(['commit', 'commit', 'rollback'])} prepared '${gid}'`)
  } else {
    await client.query('commit')
  }
}

/** Writes until `signal` is aborted. Errors are part of it: serialization failures, deadlocks, foreign keys, a server that goes away. */
export async function write(connectionString: string, random: Random, longMs: number, signal: AbortSignal): Promise<number> {
  let committed = 0
  let client: pg.Client | undefined
  while (!signal.aborted) {
    try {
      if (client === undefined) {
        client = new pg.Client({ connectionString })
        client.on('error', () => {})
        await client.connect()
      }
      await transaction(client, random, longMs)
      committed++
      // Leaves the workers and the auditor some of the machine.
      await sleep(random.upTo(10))
    } catch (error) {
      const isServerError = error instanceof pg.DatabaseError && !error.code?.startsWith('57P')
      const alive = isServerError && (await client?.query('rollback').then(() => true, () => false))
      if (!alive) {
        await client?.end().catch(() => {})
        client = undefined
        await sleep(50)
      }
    }
  }
  await client?.end().catch(() => {})
  return committed
}
