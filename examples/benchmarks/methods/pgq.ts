import { readFile } from 'node:fs/promises'

import type { Bench } from '../bench.ts'
import { startProcess } from '../processes.ts'
import { statements, storedInPosts } from './method.ts'
import type { Method, Tables } from './method.ts'

/**
 * Skype's PgQ, the C extension: an event for each like in the same statement, and a consumer that sums a batch and updates the posts in the
 * transaction that finishes it. (Both leave roles on the server, pgq_reader and the like.) https://wiki.postgresql.org/wiki/PGQ_Tutorial; what is set is said in `createQueue()` and in the consumer.
 */
export const pgq: Method = {
  name: 'PgQ (C extension)',
  async missing({ pool }) {
    const { rows } = await pool.query(`select from pg_available_extensions where name = 'pgq'`)
    if (rows.length > 0) return undefined
    return 'the extension pgq is not installed on this server. Install it beside a server of yours (Debian: apt-get install postgresql-15-pgq3) and name that with --database-url.'
  },
  async open(bench, tables) {
    await bench.pool.query('create extension if not exists pgq')
    return openQueue(bench, tables, 'pgq')
  },
}

/** PgQue, PgQ in SQL and PL/pgSQL alone (github.com/NikolayS/pgque), from its own file. */
export const pgque: Method = {
  name: 'PgQue (PgQ in SQL)',
  async missing({ pgqueFile }) {
    if (pgqueFile === undefined) return 'its SQL is not at hand. Get sql/pgque.sql from github.com/NikolayS/pgque, and name it with --pgque or PGQUE_SQL.'
    return readFile(pgqueFile).then(
      () => undefined,
      () => `there is no file ${pgqueFile}. Name pgque.sql with --pgque or PGQUE_SQL.`,
    )
  },
  async open(bench, tables) {
    const { rows } = await bench.pool.query<{ there: boolean }>(`select to_regnamespace('pgque') is not null as there`)
    if (!rows[0]?.there) await bench.pool.query(await readFile(bench.pgqueFile ?? '', 'utf8'))
    return openQueue(bench, tables, 'pgque')
  },
}

async function openQueue({ pool, connectionString }: Bench, tables: Tables, api: 'pgq' | 'pgque') {
  const queue = tables.schema
  await pool.query(`select ${api}.create_queue($1)`, [queue])
  // A tick each 100 ms, as PgQue has it by default; by its own default of 3 s PgQ would only be later.
  await pool.query(`select ${api}.set_queue_config($1, 'ticker_max_lag', '100 milliseconds')`, [queue])
  await pool.query(`select ${api}.register_consumer($1, 'likes')`, [queue])
  const emit = (delta: number) => `select ${api}.insert_event('${queue}', '${delta}', post_id::text) from changed`
  return {
    ...statements(tables, emit),
    stored: storedInPosts(tables),
    consume: (onLine?: (line: string) => void) => startProcess(new URL('../consumers/pgq.ts', import.meta.url), [connectionString, api, queue, tables.posts], onLine),
    schemas: [api],
    close: async () => {
      await pool.query(`select ${api}.drop_queue($1, true)`, [queue])
    },
  }
}
