import { defineCheck } from '../check.ts'

interface Row {
  role: string | null
  database: string | null
  remedy: string
}

/** Roles and databases whose sessions fire no triggers. */
export const replicationRole = defineCheck<Row>()({
  name: 'session_replication_role',
  codes: { REPLICATION_ROLE: 'error' },
  needsSchema: false,
  query: () => `
    select r.rolname as role, d.datname as database, concat_ws(' ',
      case when s.setrole <> 0 then format('ALTER ROLE %s', quote_ident(r.rolname)) end,
      case when s.setdatabase <> 0 then format('%s DATABASE %s', case s.setrole when 0 then 'ALTER' else 'IN' end, quote_ident(d.datname)) end,
      'RESET session_replication_role;') as remedy
    from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) c
    where (s.setdatabase = 0 or d.datname = current_database()) and c ~* '^session_replication_role=' and c !~* '=(origin|local)$'
    union all
    select null, null, 'ALTER SYSTEM RESET session_replication_role;' || chr(10) || 'SELECT pg_reload_conf();'
    from pg_settings where name = 'session_replication_role' and reset_val = 'replica' and source in ('configuration file', 'command line')`,
  find: (rows, { database: current }) =>
    rows.map(({ role, database, remedy }) => {
      const who = role === null ? (database === null ? 'all sessions of the server' : `all sessions of the database "${database}"`) : `the role "${role}"${database === null ? '' : ` in the database "${database}"`}`
      return {
        code: 'REPLICATION_ROLE',
        subject: role === null ? { kind: 'database', name: database ?? current } : { kind: 'role', name: role },
        problem: `session_replication_role is "replica" for ${who}: no trigger fires for what is written there, so it is not counted.`,
        remedy: [{ sql: remedy }, { advice: 'It takes effect with new sessions: let the application connect again. Then reconcile the counters whose tables were written to: pgtally reconcile NAME' }],
      }
    }),
})
