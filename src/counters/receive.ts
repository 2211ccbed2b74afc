import type { Pool } from 'pg'

import { PgtallyError, describeError, isConnectionError, isDatabaseError } from '../errors.ts'
import { query } from '../executor.ts'
import type { ExportedBatch } from '../queue/batch.ts'
import { inTransaction } from '../transaction.ts'

export interface ReceiveOptions {
  /** The server ends what takes longer. */
  timeoutMs: number
  signal: AbortSignal
}

/** What to do, by SQLSTATE or code. */
const remedies: Readonly<Record<string, string>> = {
  '22003': "The queue's keys do not fit the counter's type. Forward to a counter with a wider keyType.",
  '22P02': "The queue's keys do not fit the counter's type. Forward to a counter whose keyType is that of the queue, or text.",
  '42501': 'The role there needs USAGE on the schema and EXECUTE on receive_batch().',
  '42883': 'The schema there is of another version of pgtally. Run `pgtally install` there, with the version that forwards.',
  INVALID_EVENT: 'Forward to a counter without a source, with a queue of its own.',
  '57014': 'It took longer than timeoutMs. Give it more time, or forward less at a time (maxEvents).',
}

/**
 * Adds a batch of another database to the counter; see `receive_batch()`.
 *
 * @returns false when it had been added before
 * @throws Error, PgtallyError that names the counter, with what to do about it
 */
export async function receiveBatch(pool: Pool, schema: string, counter: string, { batch, keys, deltas }: ExportedBatch, { timeoutMs, signal }: ReceiveOptions): Promise<boolean> {
  try {
    return await inTransaction(
      pool,
      async (client) => {
        await client.query(`set local statement_timeout = ${timeoutMs}; set local idle_in_transaction_session_timeout = ${timeoutMs}`)
        const text = `select ${schema}.receive_batch($1::text, $2::jsonb, $3::text[], $4::int8[])::text as received`
        const [row] = await query<{ received: string }>(client, text, [counter, batch, keys, deltas])
        return row?.received === 'true'
      },
      // When the source has finished the batch, nobody else will bring it again.
      { asynchronousCommit: false, signal },
    )
  } catch (cause) {
    signal.throwIfAborted()
    const remedy = isDatabaseError(cause) || cause instanceof PgtallyError ? remedies[cause.code] : undefined
    const reason = isConnectionError(cause) ? `its server cannot be reached (${describeError(cause) || 'no connection'}); this goes on when it can` : describeError(cause)
    const message = `Cannot forward to the counter "${counter}": ${reason}${remedy === undefined ? '' : `. ${remedy}`}`
    throw cause instanceof PgtallyError ? new PgtallyError(cause.code, message, { cause }) : new Error(message, { cause })
  }
}
