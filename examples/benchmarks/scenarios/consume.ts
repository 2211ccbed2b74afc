import { z } from 'zod'

import type { ConsumerMode } from '../../../src/index.ts'
import { prepare } from '../clients.ts'
import type { Bench } from '../bench.ts'
import type { Metric, Result } from '../results.ts'
import type { Scenario } from './scenario.ts'

const metrics: Metric[] = [{ key: 'rate', title: 'events/s', ratio: true }]

const ways: { name: string; mode: ConsumerMode; maxEvents?: number; schema?: z.ZodType }[] = [
  { name: 'transactional', mode: 'transactional' },
  { name: 'transactional, batches of 100,000', mode: 'transactional', maxEvents: 100_000 },
  { name: 'transactional, with a schema', mode: 'transactional', schema: z.object({ user_id: z.int() }) },
  { name: 'at-least-once', mode: 'at-least-once' },
]

/** A handler that reads each event with its data and does nothing, in one process. */
export const consume: Scenario = {
  name: 'consume',
  description: 'events read by a consumer that does nothing with them',
  async run(bench): Promise<Result[]> {
    const { tally, divisor, repetitions, progress, signal } = bench
    const events = 1_000_000 / divisor
    await tally.createQueue('events', { rotationPeriodMs: 3_600_000 })
    const rows = ways.map(({ name }) => ({ name, samples: { rate: [] as number[] } }))
    for (let round = 0; round < repetitions; round++) {
      for (const [index, { name, ...way }] of ways.entries()) {
        signal.throwIfAborted()
        const consumer = `consumer ${round} ${index}`
        await tally.queue('events').register(consumer)
        // As many transactions as single likes of a thousand users would be in a hundredth of the time.
        await prepare(bench, `do $$ begin
          for user_id in 1..1000 loop
            insert into pgtally.event_1 (ev_key, ev_delta, ev_data) select 1 + random() * 99999, 1, jsonb_build_object('user_id', user_id) from generate_series(1, ${events / 1000}) n;
            commit;
          end loop;
        end $$`)
        const { read, seconds } = await readAll(bench, consumer, events, way)
        if (read !== events) throw new Error(`${name}: ${read} of ${events} events were read`)
        rows[index]?.samples.rate.push(events / seconds)
        await tally.queue('events').unregister(consumer)
        progress(`consume: ${name}: done`)
      }
    }
    return [{ id: 'consume', title: `Events per second read by a consumer that does nothing, ${events.toLocaleString('en-US')} events with data, one process`, metrics, rows, bars: true }]
  },
}

async function readAll({ tally }: Bench, name: string, events: number, way: Omit<(typeof ways)[number], 'name'>): Promise<{ read: number; seconds: number }> {
  let read = 0
  const began = performance.now()
  const { promise: all, resolve } = Promise.withResolvers<void>()
  const consumer = tally.consumer({
    queue: 'events',
    name,
    ...way,
    handler: async (batch) => {
      for await (const event of batch) if (event.delta === 1) read++
      if (read >= events) resolve()
    },
  })
  await Promise.race([all, consumer.done])
  // With the end of the last batch.
  await consumer.stop()
  return { read, seconds: (performance.now() - began) / 1000 }
}
