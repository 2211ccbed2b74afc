// Two regions, each a PostgreSQL of its own that takes in likes, forward them to each other, so that both know the count of both.
//
//   npm run two-regions
//
// Each keeps its own part: `here`, counted from its own likes, and `elsewhere`, what the other forwards. What was received is forwarded by nobody, so nothing goes round.

import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

import { startEmbeddedServer } from '../src/demo/embedded-server.ts'
import { Interruption, withInterruption } from '../src/demo/interruption.ts'
// In your own project: from 'pgtally'
import { createTally, defineCounters } from '../src/index.ts'

const posts = 10
const likers = 4
const roundMs = 1000

const print = (text: string) => process.stdout.write(`${text}\n`)

const counts = 'select post_id, here + elsewhere as likes from like_counts order by post_id'

const counters = defineCounters()({
  likes_here: {
    source: { table: 'likes', key: 'post_id' },
    target: { table: 'like_counts', key: 'post_id', column: 'here' },
    onMissing: 'insert',
  },
  likes_elsewhere: {
    target: { table: 'like_counts', key: 'post_id', column: 'elsewhere' },
    onMissing: 'insert',
  },
})

type Region = Awaited<ReturnType<typeof createRegion>>

async function createRegion(name: string) {
  const server = await startEmbeddedServer({ settings: { fsync: 'off' } })
  const pool = new pg.Pool({ connectionString: server.connectionString })
  pool.on('error', () => {})
  await pool.query(`
    create table likes (post_id bigint, user_id bigint, primary key (post_id, user_id));
    create table like_counts (post_id bigint primary key, here bigint not null default 0, elsewhere bigint not null default 0)`)
  const tally = createTally({ pool, counters })
  await tally.install()
  return { name, server, pool, tally }
}

/** Likes and takes some back, until it is told to stop; goes on when the server is there again. */
async function like({ pool }: Region, userId: number, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const postId = 1 + Math.floor(Math.random() * posts)
    const text = Math.random() < 0.7 ? 'insert into likes values ($1, $2) on conflict do nothing' : 'delete from likes where (post_id, user_id) = ($1, $2)'
    await pool.query(text, [postId, userId + likers * Math.floor(Math.random() * 1000)]).catch(() => sleep(50))
  }
}

async function show({ name, pool }: Region): Promise<string> {
  const { rows } = await pool.query<{ likes: string }>(counts)
  return `  ${name}: ${rows.map(({ likes }) => likes.padStart(5)).join('')}`
}

async function lag(region: Region): Promise<number> {
  const { consumers, counters: all } = await region.tally.status()
  return [...consumers, ...all].reduce((sum, { pendingEvents }) => sum + pendingEvents, 0)
}

async function run(regions: [Region, Region], signal: AbortSignal): Promise<boolean> {
  const [eu, us] = regions
  print(`\nEach region counts with pgtally and forwards to the other. The global count of each post, in either:\n\n  ${counts}\n`)
  await using euWorker = eu.tally.worker()
  await using usWorker = us.tally.worker()
  await using euForward = eu.tally.forward({ queue: 'likes_here', name: 'to us', to: us.tally.counters.likes_elsewhere })
  await using usForward = us.tally.forward({ queue: 'likes_here', name: 'to eu', to: eu.tally.counters.likes_elsewhere })
  // Before the first like: what commits from then on is forwarded.
  for (const { tally } of regions) while ((await tally.status()).consumers.length === 0) await sleep(10)

  const stopping = new AbortController()
  const stopped = AbortSignal.any([stopping.signal, signal])
  const likes = regions.flatMap((region) => Array.from({ length: likers }, (_, userId) => like(region, userId, stopped)))
  print('Likes and unlikes in both regions:')
  for (let round = 0; round < 3; round++) {
    await sleep(roundMs, undefined, { signal })
    for (const region of regions) print(await show(region))
  }
  print('\nThe server of us crashes; eu goes on liking, and keeps for us what it cannot forward:')
  await us.server.crash()
  await sleep(roundMs, undefined, { signal })
  print(await show(eu))
  print(`  waiting in eu: ${(await lag(eu)).toLocaleString('en-US')} events`)
  await us.server.restart()
  print('\nIt is back:')
  await sleep(roundMs, undefined, { signal })
  for (const region of regions) print(await show(region))
  stopping.abort()
  await Promise.all(likes)

  print('\nNobody likes any more. As soon as nothing is on its way:')
  while ((await lag(eu)) + (await lag(us)) > 0) await sleep(50, undefined, { signal })
  await Promise.all([euForward.stop(), usForward.stop(), euWorker.stop(), usWorker.stop()])
  // What was carried, if a row was locked.
  for (const { tally } of regions) await tally.drain()
  const shown = await Promise.all(regions.map(({ pool }) => pool.query<{ post_id: string; likes: string }>(counts)))
  for (const region of regions) print(await show(region))
  const rows = new Map<string, number>()
  for (const { pool } of regions) {
    const { rows: found } = await pool.query<{ post_id: string; n: string }>('select post_id, count(*) as n from likes group by post_id')
    for (const { post_id: postId, n } of found) rows.set(postId, (rows.get(postId) ?? 0) + Number(n))
  }
  print(`  rows: ${Array.from({ length: posts }, (_, index) => String(rows.get(String(index + 1)) ?? 0).padStart(5)).join('')}`)
  return shown.every((result) => result.rows.length === posts && result.rows.every(({ post_id: postId, likes: count }) => Number(count) === (rows.get(postId) ?? 0)))
}

try {
  await withInterruption(async (signal) => {
    print('Starting two servers …')
    const regions = (await Promise.all(['eu', 'us'].map(createRegion))) as [Region, Region]
    try {
      const equal = await run(regions, signal)
      print(equal ? '\nBoth regions have the same counts, and they are those of the rows in both.' : '\nThe counts differ. This must not happen.')
      if (!equal) process.exitCode = 1
    } finally {
      for (const { pool, server } of regions) {
        await pool.end()
        await server.stop()
      }
    }
  })
} catch (error) {
  if (!(error instanceof Interruption) && !(error instanceof Error && error.cause instanceof Interruption)) throw error
  const interruption = (error instanceof Interruption ? error : error.cause) as Interruption
  print(`${interruption.message}; everything is stopped.`)
  process.exitCode = interruption.exitCode
}
