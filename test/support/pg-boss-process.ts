// A sender of jobs, or a worker that does them, in a process of its own, to be killed.

import pg from 'pg'
import { PgBoss } from 'pg-boss'

import { createTally } from '../../src/index.ts'
import { milestoneJobs } from '../../src/pg-boss.ts'
import type { MilestoneJob } from '../../src/pg-boss.ts'

const [role = '', connectionString = ''] = process.argv.slice(2)

// It ends with its parent.
process.stdin.resume().on('close', () => process.exit())

const boss = new PgBoss({ connectionString, max: 4, schedule: false, superviseIntervalSeconds: 1, monitorIntervalSeconds: 1 })
boss.on('error', () => {})
await boss.start()
if (role === 'sender') {
  const pool = new pg.Pool({ connectionString, max: 4 })
  createTally({ pool }).consumer({ ...milestoneJobs({ counter: 'likes', boss, jobQueue: 'congratulate' }), maxEvents: 50, pollIntervalMs: 1 })
} else {
  await boss.work<MilestoneJob, void, { batchSize: number; burstWhenBatchFull: boolean; pollingIntervalSeconds: number; transactional: true }>(
    'congratulate',
    { batchSize: 20, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5, transactional: true },
    async (given, transaction) => {
      for (const { id, data } of given) await transaction.executeSql('insert into congratulations (job, key, threshold) values ($1, $2, $3)', [id, data.key, data.threshold])
    },
  )
}
console.log('started')
