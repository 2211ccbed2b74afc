import { defineCheck } from '../check.ts'
import type { Found } from '../finding.ts'

interface Row {
  name: string
  value: string
  milliseconds: number
  set: string
}

const harmfulBelowMs: Readonly<Record<string, readonly [ms: number, why: string]>> = {
  statement_timeout: [5000, 'Large batches, audits and backfills are cancelled before they end, again and again'],
  transaction_timeout: [5000, 'Large batches, audits and backfills are ended before they are through, again and again'],
  idle_in_transaction_session_timeout: [5000, 'A consumer whose handler takes longer loses its transaction and is given the batch again, again and again'],
}

/** What new sessions of this role begin with, where it would do harm to a worker. */
export const sessionSettings = defineCheck<Row>()({
  name: 'settings of this role',
  codes: { TIMEOUT_SHORT: 'warning', READ_ONLY_DEFAULT: 'error', ISOLATION_DEFAULT: 'info' },
  needsSchema: false,
  query: () => `
    select name, reset_val as value, case when unit = 'ms' then reset_val::int8 else 0 end as milliseconds,
      format('ALTER ROLE %I IN DATABASE %I SET %s = ', current_user, current_database(), name) as set
    from pg_settings where name in ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout', 'default_transaction_read_only', 'default_transaction_isolation')`,
  find: (rows, { role, standby }) =>
    rows.flatMap(({ name, value, milliseconds, set }): Found<'TIMEOUT_SHORT' | 'READ_ONLY_DEFAULT' | 'ISOLATION_DEFAULT'>[] => {
      const subject = { kind: 'role', name: role } as const
      const afterwards = { advice: 'It takes effect with new sessions: restart the workers. A pooler may have settings of its own, in server_reset_query, connect_query or a startup parameter.' }
      const [harmfulMs, why] = harmfulBelowMs[name] ?? [0, '']
      if (milliseconds > 0 && milliseconds < harmfulMs) {
        const problem = `${name} is ${milliseconds} ms for the role "${role}". ${why}, if workers or consumers connect with it.`
        return [{ code: 'TIMEOUT_SHORT', subject, problem, remedy: [{ sql: `${set}'1min';` }, afterwards] }]
      }
      if (name === 'default_transaction_read_only' && value === 'on' && !standby) {
        const problem = `default_transaction_read_only is on for the role "${role}": a worker that connects with it cannot apply anything.`
        return [{ code: 'READ_ONLY_DEFAULT', subject, problem, remedy: [{ sql: `${set}off;` }, afterwards] }]
      }
      if (name === 'default_transaction_isolation' && value !== 'read committed') {
        const problem = `default_transaction_isolation is "${value}". Workers and this library set READ COMMITTED themselves; calls of pgtally's SQL functions by hand are refused, and so is TRUNCATE of a source.`
        return [{ code: 'ISOLATION_DEFAULT', subject, problem, remedy: [{ sql: 'BEGIN ISOLATION LEVEL READ COMMITTED;' }, { advice: 'before such a call.' }] }]
      }
      return []
    }),
})
