import { Logger, run } from 'graphile-worker'

// The settings of its own measurement: https://worker.graphile.org/docs/performance

const [connectionString = '', task = '', posts = ''] = process.argv.slice(2)

interface Like {
  post: number
  delta: number
}

await run({
  connectionString,
  preset: { worker: { concurrentJobs: 24, maxPoolSize: 25, localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
  logger: new Logger(() => () => {}),
  taskList: {
    async [task](payload, helpers) {
      const { post, delta } = payload as Like
      await helpers.query(`update ${posts} set like_count = like_count + $2 where id = $1`, [post, delta])
    },
  },
})
console.log('started')
