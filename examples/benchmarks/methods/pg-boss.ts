import { PgBoss } from 'pg-boss'

import type { Bench } from '../bench.ts'
import { startProcess } from '../processes.ts'
import { bareStatements, statements, storedInPosts } from './method.ts'
import type { Method, OpenMethod, Tables } from './method.ts'

/** A job for each like, by an INSERT into pg-boss's job table in the same statement: https://pgboss.io/sql/job-table */
export const pgBoss: Method = {
  name: 'pg-boss, a job per like',
  async open(bench, tables) {
    const { boss, queue, rest } = await openQueue(bench, tables)
    const insert = (delta: number) => `insert into pgboss.job (name, data) select '${queue}', jsonb_build_object('post', post_id, 'delta', ${delta}) from changed`
    return { ...rest, ...statements(tables, insert), close: () => boss.stop() }
  },
}

/** The same by its Node.js API in the like's own transaction: https://pgboss.io/api/jobs, the option `db` */
export const pgBossSend: Method = {
  name: 'pg-boss, send() in the transaction',
  async open(bench, tables) {
    const { boss, queue, rest } = await openQueue(bench, tables)
    const { like, unlike } = bareStatements(tables)
    const inTransaction =
      (change: OpenMethod['like'], delta: number): OpenMethod['like'] =>
      async (client, post, user) => {
        await client.query('begin')
        await change(client, post, user)
        await boss.send(queue, { post, delta }, { db: { executeSql: (text, values) => client.query(text, values) } })
        await client.query('commit')
      }
    return { ...rest, like: inTransaction(like, 1), unlike: inTransaction(unlike, -1), close: () => boss.stop() }
  },
}

async function openQueue({ connectionString }: Bench, tables: Tables) {
  const queue = tables.schema
  // It only sends; the consumer's does all else.
  const boss = new PgBoss({ connectionString, max: 2, supervise: false, schedule: false })
  boss.on('error', () => {})
  await boss.start()
  await boss.createQueue(queue)
  const rest = {
    stored: storedInPosts(tables),
    consume: () => startProcess(new URL('../consumers/pg-boss.ts', import.meta.url), [connectionString, queue, tables.posts]),
    schemas: ['pgboss'],
  }
  return { boss, queue, rest }
}
