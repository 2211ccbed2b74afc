import { defineCheck, describeAge, secondsSince } from '../check.ts'

interface Row {
  pid: number
  role: string
  application: string
  client: string | null
  state: string
  seconds: number
  idleSeconds: number | null
  query: string
}

/** Sessions that hold a transaction open, and with it dead rows, locks and slots. */
export const transactions = defineCheck<Row>()({
  name: 'long transactions and idle sessions',
  codes: { TRANSACTION_OLD: 'warning', IDLE_IN_TRANSACTION: 'warning', SESSIONS_HIDDEN: 'info' },
  needsSchema: false,
  query: ({ limits }) => `
    select * from (
      select pid, usename as role, coalesce(nullif(application_name, ''), 'no application_name') as application, host(client_addr) as client, state, ${secondsSince('xact_start')} as seconds,
        case when state like 'idle in transaction%' then ${secondsSince('state_change')} end as "idleSeconds", left(regexp_replace(query, '\\s+', ' ', 'g'), 60) as query
      from pg_stat_activity where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid() and xact_start is not null
    ) open where "idleSeconds" > ${limits.idleInTransactionSeconds} or seconds > ${limits.transactionSeconds} order by seconds desc`,
  find: (rows, { seesSessions, role: ownRole, quotedRole, limits }) => [
    ...rows.map(({ pid, role, application, client, state, seconds, idleSeconds, query }) => {
      const idle = idleSeconds !== null && idleSeconds > limits.idleInTransactionSeconds
      const who = `${application}, role ${role}${client === null ? '' : `, from ${client}`}`
      return {
        code: idle ? ('IDLE_IN_TRANSACTION' as const) : ('TRANSACTION_OLD' as const),
        subject: { kind: 'session' as const, name: String(pid) },
        problem: idle
          ? `Session ${pid} (${who}) is "${state}" for ${describeAge(idleSeconds)}, its transaction is open for ${describeAge(seconds)}. It keeps its locks and holds back vacuum; no slot that it wrote to can be emptied. Last statement: ${query}`
          : `The transaction of session ${pid} (${who}, ${state}) is open for ${describeAge(seconds)}. As long as it is, dead rows cannot be removed, and workers take fewer batches. Statement: ${query}`,
        remedy: [
          { advice: idle ? 'Its client has most likely forgotten it. This rolls it back:' : 'If it is a dump or a report, let it end. Otherwise this rolls it back:' },
          { sql: `SELECT pg_terminate_backend(${pid});` },
          ...(idle ? [{ advice: 'For the future, set idle_in_transaction_session_timeout for that role.' }] : []),
        ],
      }
    }),
    ...(seesSessions
      ? []
      : [{
          code: 'SESSIONS_HIDDEN' as const,
          subject: { kind: 'role' as const, name: ownRole },
          problem: `The role "${ownRole}" sees its own sessions only: long transactions of others are not found.`,
          remedy: [{ sql: `GRANT pg_read_all_stats TO ${quotedRole};` }],
        }]),
  ],
})
