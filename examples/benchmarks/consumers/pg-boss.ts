import { PgBoss } from 'pg-boss'

// https://pgboss.io/api/workers: batches, fetched without a pause while they are full, completed in the handler's transaction.

const [connectionString = '', queue = '', posts = ''] = process.argv.slice(2)

interface Like {
  post: number
  delta: number
}

const boss = new PgBoss({ connectionString })
boss.on('error', (error) => {
  console.error(error.message)
})
await boss.start()
// Half a second is the shortest interval that it takes.
await boss.work<Like, void, { batchSize: number; burstWhenBatchFull: boolean; pollingIntervalSeconds: number; transactional: true }>(
  queue,
  { batchSize: 1000, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5, transactional: true },
  async (jobs, transaction) => {
    await transaction.executeSql(
      `update ${posts} set like_count = like_count + sum from (select post, sum(delta) from unnest($1::bigint[], $2::int[]) as l (post, delta) group by 1) s where id = post`,
      [jobs.map(({ data }) => data.post), jobs.map(({ data }) => data.delta)],
    )
  },
)
process.on('SIGTERM', () => {
  void boss.stop({ timeout: 5000 }).finally(() => process.exit())
})
console.log('started')
