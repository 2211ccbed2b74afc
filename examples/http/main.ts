// A small backend with likes, counts and notifications, on a PostgreSQL of its own. Run: node examples/http/main.ts [--self-test]

import { once } from 'node:events'

import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'

import { startEmbeddedServer } from '../../src/demo/embedded-server.ts'
import { createTally } from '../../src/index.ts'
import { createApp } from './app.ts'
import { counters, tables } from './database.ts'
import type { Database } from './database.ts'
import { notifier } from './notifier.ts'
import { selfTest } from './self-test.ts'

await using server = await startEmbeddedServer()
const pool = new pg.Pool({ connectionString: server.connectionString, max: 20 })
await pool.query(tables)

const tally = createTally({ pool, counters })
await tally.install()
// A process of their own would do as well, or several: npx pgtally worker --module ./consumers.js
const worker = tally.worker()
await tally.queue('post_likes').register('notifier')
const consumer = tally.consumer(notifier)

const app = createApp(new Kysely<Database>({ dialect: new PostgresDialect({ pool }) }), tally)
const url = await app.listen({ host: '127.0.0.1', port: 0 })

if (process.argv.includes('--self-test')) {
  await selfTest(url)
  console.log(`The self-test of ${url} has passed`)
} else {
  console.log(`The backend is at ${url}. Ctrl-C ends it. Try:

  curl -X PUT ${url}/posts/1/likes/7        # user 7 likes post 1
  curl ${url}/posts/1                       # the stored count
  curl ${url}/posts/1/likes                 # exact at this moment, with its parts
  curl ${url}/users/1/notifications         # "… likes your post"
  curl -X DELETE ${url}/posts/1/likes/7`)
  await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')])
}

await app.close()
await consumer.stop()
await worker.stop()
await pool.end()
