import { defineCheck } from '../check.ts'

interface Row {
  relations: number
  capacity: number
  perTransaction: number
  sessions: number
}

/** Whether the server's table of locks has room for the statements that touch everything at once: uninstall, pg_dump, audits of many partitions. */
export const lockTable = defineCheck<Row>()({
  name: 'room for locks',
  codes: { LOCK_TABLE_SMALL: 'warning' },
  needsSchema: true,
  query: ({ schema }) => `
    select (select count(*) from pg_class where relnamespace = '${schema}'::regnamespace) + (select coalesce(sum(cardinality(tables)), 0) from ${schema}.source) as relations,
      m.locks * m.sessions as capacity, m.locks as "perTransaction", m.sessions
    from (select current_setting('max_locks_per_transaction')::int8 as locks, current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8 as sessions) m`,
  find: ([row]) => {
    if (row === undefined || row.relations * 2 <= row.capacity) return []
    const needed = Math.max(2 * row.perTransaction, Math.ceil((4 * row.relations) / row.sessions))
    return [{
      code: 'LOCK_TABLE_SMALL',
      subject: { kind: 'server', name: 'max_locks_per_transaction' },
      problem: `Counters and sources have ${row.relations.toLocaleString('en-US')} tables and indexes, and the server has room for about ${row.capacity.toLocaleString('en-US')} locks in all. What touches all of them at once (pg_dump, uninstall, an audit of many partitions) may fail with "out of shared memory".`,
      remedy: [{ sql: `ALTER SYSTEM SET max_locks_per_transaction = ${needed};` }, { advice: 'Then restart the server.' }],
    }]
  },
})
