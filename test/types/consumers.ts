// Checked by `npm run typecheck`; nothing here runs.
import type pg from 'pg'
import { expectTypeOf } from 'vitest'
import { z } from 'zod'

import { createTally, defineConsumer, defineCounters, defineForward, type WorkerModule } from '../../src/index.ts'

declare const pool: pg.Pool
const tally = createTally({ pool })
const names = { queue: 'post_likes', name: 'c' }

tally.consumer({
  ...names,
  schema: z.object({ user_id: z.coerce.number() }),
  handler: async (batch) => {
    expectTypeOf(batch.client).toEqualTypeOf<pg.PoolClient>()
    for await (const event of batch) expectTypeOf(event.data).toEqualTypeOf<{ user_id: number }>()
    for await (const page of batch.pages()) expectTypeOf(page[0]?.data.user_id).toEqualTypeOf<number | undefined>()
  },
})
tally.consumer({ ...names, handler: async (batch) => { for await (const { data } of batch) expectTypeOf(data).toEqualTypeOf<unknown>() } })
tally.consumer({
  ...names,
  mode: 'at-least-once',
  each: async (event, batch) => {
    expectTypeOf(event.data).toEqualTypeOf<unknown>()
    expectTypeOf(batch).not.toHaveProperty('client')
    batch.retry(event, { delayMs: 1 })
  },
})
const defined = defineConsumer({ ...names, schema: z.string(), each: async ({ data }, { client }) => void (await client.query(data)) })
tally.consumer(defined)

// @ts-expect-error -- what to do is missing
tally.consumer({ ...names })
// @ts-expect-error -- both are one too many
tally.consumer({ ...names, handler: async () => {}, each: async () => {} })
// @ts-expect-error -- there is no such mode
tally.consumer({ ...names, mode: 'exactly-once', handler: async () => {} })
// @ts-expect-error -- no transaction here
tally.consumer({ ...names, mode: 'at-least-once', handler: async (batch) => void batch.client })

interface DB {
  likes: { post_id: number; user_id: number }
}
defineCounters<DB>()({ likes: { source: { table: 'likes', key: 'post_id', data: ['user_id'] } } })
// @ts-expect-error -- there is no such column
defineCounters<DB>()({ likes: { source: { table: 'likes', key: 'post_id', data: ['emoji'] } } })

const total = createTally({ pool, counters: defineCounters()({ all_likes: { keyType: 'text' } }) })
const forward = defineForward({ ...names, to: total.counters.all_likes, maxEvents: 1000 })
tally.forward({ ...names, to: total.counter<number>('all_likes') })
// @ts-expect-error -- to a counter, not to a pool
tally.forward({ ...names, to: pool })
// @ts-expect-error -- batches follow one another
tally.forward({ ...names, to: total.counters.all_likes, ordered: false })

const module: WorkerModule = { consumers: [defined, forward, defineConsumer({ ...names, mode: 'at-least-once', each: async () => {} })] }
void module
