// Counts in Redis, written by the worker and read through, which survive that Redis is away for a while. Run: node examples/redis.ts
//
// REDIS_URL names a Redis to use; without it, one of its own is started.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import { createClient } from 'redis'

import { startEmbeddedServer } from '../src/demo/embedded-server.ts'
import { createTally, defineCounters } from '../src/index.ts'
import { createRedisCache } from '../src/redis.ts'

const port = 20_000 + (process.pid % 10_000)
const ownRedis = process.env['REDIS_URL'] === undefined ? spawn('redis-server', ['--port', String(port), '--bind', '127.0.0.1', '--save', ''], { stdio: 'ignore' }) : undefined
if (ownRedis !== undefined) {
  const [error] = await Promise.race([once(ownRedis, 'error'), once(ownRedis, 'spawn')])
  if (error instanceof Error || ownRedis.pid === undefined) {
    console.log('This needs redis-server: apt-get install redis-server, or the URL of a Redis in REDIS_URL.')
    process.exit(0)
  }
}

await using server = await startEmbeddedServer()
const pool = new pg.Pool({ connectionString: server.connectionString })
await pool.query(`
  create table posts (id int primary key, like_count int not null default 0);
  create table likes (post_id int not null references posts, user_id int not null, primary key (post_id, user_id));
  insert into posts values (1), (2)`)
const counters = defineCounters()({ post_likes: { source: { table: 'likes', key: 'post_id' }, target: { table: 'posts', key: 'id', column: 'like_count' } } })
const tally = createTally({ pool, counters })
await tally.install()

const redis = createClient({ url: process.env['REDIS_URL'] ?? `redis://127.0.0.1:${port}`, socket: { reconnectStrategy: 50 } }).on('error', () => {})
await redis.connect()
const prefix = `example ${process.pid}:`
const cache = createRedisCache({ redis, tally, prefix, ttlMs: 60_000, logger: { info: (_, message) => console.log(message), warn: (_, message) => console.log(message) } })
const worker = tally.worker({ onApplied: cache.onApplied })

console.log(`Post 1, read through from PostgreSQL: ${await cache.get('post_likes', 1)} likes`)
await pool.query('insert into likes select 1, n from generate_series(1, 100) n')
for (let count = 0; count !== 100; count = Number(await cache.get('post_likes', 1))) await sleep(10)
console.log('Post 1, as the worker has written it to Redis: 100 likes')
const [key = ''] = await redis.keys(`${prefix}post_likes:*`)
console.log(`In Redis: ${key} = ${await redis.get(key)} (version:count)`)

await worker.stop()
await redis.del(await redis.keys(`${prefix}*`))
redis.destroy()
await pool.end()
ownRedis?.kill()
