import type { Pool, PoolClient } from 'pg'

import { connect, release } from '../transaction.ts'

/** id, microseconds since 1970, key, delta, data, attempts: all as text, which no type parser of the caller's changes, and so as exact as they came. */
export type RawEvent = readonly [id: string, time: string, key: string, delta: string, data: string | null, attempts: string]

// date_part() gives a double, exact to the microsecond once rounded, and takes a fraction of the time of extract(), which gives a numeric.
const columns = "ev_id, (date_part('epoch', ev_time) * 1000000)::int8::text, ev_key, ev_delta::text, ev_data::text, attempts::text"
const pageSize = 5000

let cursors = 0

/** The events of an open batch, page by page, through a cursor of the transaction that the client is in. `onLast` is called before the last page is given. */
export async function* readEvents(client: PoolClient, schema: string, batchId: string, onLast?: () => Promise<void>): AsyncGenerator<readonly RawEvent[], void, undefined> {
  const cursor = `pgtally_events_${++cursors}`
  await client.query(`declare ${cursor} no scroll cursor for select ${columns} from ${schema}.get_batch_events(${batchId})`)
  for (;;) {
    const { rows } = await client.query<[...RawEvent]>({ text: `fetch ${pageSize} from ${cursor}`, rowMode: 'array' })
    const isLast = rows.length < pageSize
    if (isLast) {
      await client.query(`close ${cursor}`)
      await onLast?.()
    }
    yield rows
    if (isLast) return
  }
}

/** The same in a transaction of its own, which is over when the last page is given: a handler that takes long holds back nothing meanwhile. */
export async function* readEventsApart(pool: Pool, schema: string, batchId: string): AsyncGenerator<readonly RawEvent[], void, undefined> {
  const client = await connect(pool)
  let ended = false
  const end = async (command: string) => {
    ended = true
    let broken: boolean | Error = false
    await client.query(command).catch((error: Error) => {
      broken = error
    })
    release(client, broken)
  }
  try {
    await client.query('begin isolation level read committed')
    yield* readEvents(client, schema, batchId, () => end('commit'))
  } finally {
    if (!ended) await end('rollback')
  }
}
