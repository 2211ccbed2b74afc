// An archive in a process of its own, to be killed: with `page` it stays for ever after it has written the first page, with `rename` when its files are in place.

import pg from 'pg'

import { archive } from '../../src/archive.ts'
import { createTally } from '../../src/index.ts'
import type { HandledBatch } from '../../src/queue/batch.ts'

const [connectionString = '', queue = '', directory = '', stayAfter = ''] = process.argv.slice(2)

// It ends with its parent.
process.stdin.resume().on('close', () => process.exit())

const stay = async (point: string) => {
  if (point !== stayAfter) return
  console.log(point)
  await new Promise(() => {})
}

const pool = new pg.Pool({ connectionString })
const definition = archive({ queue, name: 'archive', directory, maxEvents: 12_000, minEvents: 1, maxWaitMs: 0, pollIntervalMs: 5, leaseMs: 200 })
createTally({ pool }).consumer({
  ...definition,
  handler: async (given) => {
    const batch = given as HandledBatch
    const slow = {
      id: batch.id,
      attempt: batch.attempt,
      signal: batch.signal,
      token: batch.token,
      async *rawPages() {
        for await (const page of batch.rawPages()) {
          yield page
          await stay('page')
        }
      },
    }
    await definition.handler?.(slow as never)
    await stay('rename')
  },
} as typeof definition)
console.log('started')
