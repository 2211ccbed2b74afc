// A process that forwards the queue `likes` of SOURCE_URL to the counter `total` of TARGET_URL, until it is killed, or its parent ends.

import pg from 'pg'

import { createTally } from '../../src/index.ts'

process.stdin.resume().on('close', () => process.exit())

const [source, target] = ['SOURCE_URL', 'TARGET_URL'].map((name) => {
  const pool = new pg.Pool({ connectionString: process.env[name], max: 5, application_name: 'forward' })
  pool.on('error', () => {})
  return createTally({ pool })
})
if (source === undefined || target === undefined) throw new Error('unreachable')
const forward = source.forward({ queue: 'likes', name: 'to total', to: target.counter('total'), maxEvents: 500, leaseMs: 300, pollIntervalMs: 5 })
await forward.done
