import { setTimeout as sleep } from 'node:timers/promises'

import type { Client, Pool, PoolClient } from 'pg'

import { isDatabaseError, isReadOnly } from './errors.ts'

export interface TransactionOptions {
  /**
   * Let COMMIT return before the log is on disk. Only for transactions that could be done again from what they read:
   * should a crash take the last ones away, it takes both the counts and the position. With `false`, COMMIT waits for the disk even where the server's default
   * is otherwise: for what another server shall rely on.
   */
  asynchronousCommit?: boolean
  /** Write, whatever `default_transaction_read_only` is set to. */
  readWrite?: boolean
  /** When it is aborted, the connection is closed at once, whatever it waits for. */
  signal?: AbortSignal | undefined
}

/**
 * Runs `work` in a READ COMMITTED transaction on a connection of its own, whatever the database's default isolation is.
 * What `work` throws rolls it back and is passed on.
 */
export async function inTransaction<T>(
  pool: Pool,
  work: (client: PoolClient) => Promise<T>,
  { asynchronousCommit, readWrite = false, signal }: TransactionOptions = {},
): Promise<T> {
  const client = await connect(pool)
  let broken: boolean | Error = false
  let begun = false
  // A server that has gone silent would not even answer a ROLLBACK.
  const close = () => void (client as unknown as Client).end().catch(() => {})
  signal?.addEventListener('abort', close, { once: true })
  try {
    const commitMode = asynchronousCommit === undefined ? '' : `; SET LOCAL synchronous_commit = ${asynchronousCommit ? 'off' : 'on'}`
    await client.query(`BEGIN ISOLATION LEVEL READ COMMITTED${readWrite ? ', READ WRITE' : ''}${commitMode}`)
    begun = true
    const result = await work(client)
    await client.query('COMMIT')
    return result
  } catch (error) {
    if (signal?.aborted || !begun || isReadOnly(error)) broken = true
    else {
      await client.query('ROLLBACK').catch((rollbackError: Error) => {
        broken = rollbackError
      })
    }
    throw error
  } finally {
    signal?.removeEventListener('abort', close)
    release(client, broken)
  }
}

// Triggers come and go under locks that wait for the writers at work, and everyone else queues behind: so they are
// asked for briefly, well below deadlock_timeout, and again after a pause in which the others go on.
const lockTimeoutMs = 500
const pauseMs = 500
const attempts = 60

/** As `inTransaction`, tried again for half a minute while other transactions hold the locks that `work` needs. */
export async function inLockingTransaction<T>(pool: Pool, work: (client: PoolClient) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await inTransaction(pool, async (client) => {
        await client.query(`set local lock_timeout = ${lockTimeoutMs}`)
        return work(client)
      })
    } catch (error) {
      const locked = isDatabaseError(error) && error.code === '55P03'
      if (!locked || attempt === attempts) throw error
      await sleep(pauseMs)
    }
  }
}

// A connection that dies between two statements reports it as an event; unheard, it would end the process. The next statement fails.
const ignore = () => {}

/** With a callback, since a connection may die between its first breath and the moment that a promise of it is looked at. */
export function connect(pool: Pool): Promise<PoolClient> {
  return new Promise((resolve, reject) => {
    pool.connect((error, client) => {
      if (client === undefined) return reject(error)
      client.on('error', ignore)
      resolve(client)
    })
  })
}

/** Gives back what `connect()` gave; closes it where it is broken. */
export function release(client: PoolClient, broken: boolean | Error = false): void {
  client.off('error', ignore)
  client.release(broken)
}
