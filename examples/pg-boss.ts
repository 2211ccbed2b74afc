// The milestones of a counter become jobs of pg-boss, each exactly one: in the transaction that finishes their batch. Run: node examples/pg-boss.ts

import pg from 'pg'
import { PgBoss } from 'pg-boss'

import { startEmbeddedServer } from '../src/demo/embedded-server.ts'
import { createTally, defineCounters } from '../src/index.ts'
import { milestoneJobs, scheduleMaintenance } from '../src/pg-boss.ts'
import type { MilestoneJob } from '../src/pg-boss.ts'

await using server = await startEmbeddedServer()
const { connectionString } = server
const pool = new pg.Pool({ connectionString })
await pool.query(`
  create table posts (id int primary key, like_count int not null default 0);
  create table likes (post_id int not null references posts, user_id int not null, primary key (post_id, user_id));
  insert into posts values (1), (2), (3)`)
const counters = defineCounters()({
  post_likes: { source: { table: 'likes', key: 'post_id' }, target: { table: 'posts', key: 'id', column: 'like_count' }, milestones: [10, 100, 1000] },
})
const tally = createTally({ pool, counters })
await tally.install()

const boss = new PgBoss({ connectionString })
boss.on('error', (error) => console.error(error.message))
await boss.start()
await boss.createQueue('congratulate')

// pg-boss is the calendar, too: audits at night, and says on Sundays what `pgtally reconcile` would correct.
await scheduleMaintenance(boss, tally, { onReport: ({ task, measurements }) => console.log(task, measurements) })
for (const { name, cron, timezone } of await boss.getSchedules()) console.log(`Scheduled: ${name}, ${cron} ${timezone}`)

const { promise: allDone, resolve } = Promise.withResolvers<void>()
const done = new Set<string>()
await boss.work<MilestoneJob>('congratulate', async (jobs) => {
  for (const { data } of jobs) {
    console.log(`Post ${data.key} has ${data.threshold} likes: congratulations!`)
    done.add(`${data.key} ${data.threshold}`)
  }
  if (done.size === 6) resolve()
})
// The consumer is there before the first milestone is.
await tally.queue('post_likes.milestones').register('congratulator')
const sender = tally.consumer(milestoneJobs({ counter: 'post_likes', boss, jobQueue: 'congratulate', name: 'congratulator' }))
const worker = tally.worker()
await pool.query('insert into likes select post, n from generate_series(1, 3) post, generate_series(1, (10 ^ post)::int) n')
await allDone
await sender.stop()
await worker.stop()
await boss.stop()
await pool.end()
