import { defineCheck, describeAge, plural, secondsSince } from '../check.ts'
import type { Found } from '../finding.ts'

interface Row {
  kind: 'setting' | 'table'
  name: string
  /** Whether autovacuum passes over it. */
  off: boolean
  dead: number
  live: number
  vacuumSeconds: number | null
}

type Code = 'AUTOVACUUM_OFF' | 'TABLE_AUTOVACUUM_OFF' | 'DEAD_ROWS'

// Autovacuum comes once a minute at best, and takes its time.
const recentSeconds = 600

/** Whether the tables that are updated all the time are vacuumed. Event slots never are, on purpose: they are truncated. */
export const autovacuum = defineCheck<Row>()({
  name: 'autovacuum',
  codes: { AUTOVACUUM_OFF: 'warning', TABLE_AUTOVACUUM_OFF: 'warning', DEAD_ROWS: 'warning' },
  needsSchema: true,
  query: ({ schema }) => `
    select 'setting' as kind, name, true as off, 0 as dead, 0 as live, null::float8 as "vacuumSeconds"
    from pg_settings where name in ('autovacuum', 'track_counts') and setting = 'off'
    union all
    select 'table', c.oid::regclass::text, exists (select from unnest(c.reloptions) o where o ~* '^autovacuum_enabled=(off|false|no|0)$'),
      coalesce(s.n_dead_tup, 0), coalesce(s.n_live_tup, 0), ${secondsSince('greatest(s.last_autovacuum, s.last_vacuum)')}
    from pg_class c left join pg_stat_all_tables s on s.relid = c.oid
    where c.relkind = 'r' and c.oid in (
      select k.target_table from ${schema}.counter k union select t.relid from ${schema}.counter k, pg_partition_tree(k.target_table) t
      union select o.oid from pg_class o where o.relnamespace = '${schema}'::regnamespace and o.relname !~ '^event_')
    order by 1, 2`,
  find: (rows, { limits }) =>
    rows.flatMap(({ kind, name, off, dead, live, vacuumSeconds }) => {
      if (kind === 'setting') {
        return [{
          code: 'AUTOVACUUM_OFF',
          subject: { kind: 'server', name },
          problem: `${name} is off for the whole server: dead rows are never removed, batches get slower, and in the end the server stops for wraparound.`,
          remedy: [{ sql: `ALTER SYSTEM SET ${name} = on;\nSELECT pg_reload_conf();` }],
        } satisfies Found<Code>]
      }
      const subject = { kind: 'table', name } as const
      const found: Found<Code>[] = []
      if (off) {
        const problem = `Autovacuum is off for ${name}, which is updated with every batch: its dead rows are never removed.`
        found.push({ code: 'TABLE_AUTOVACUUM_OFF', subject, problem, remedy: [{ sql: `ALTER TABLE ${name} RESET (autovacuum_enabled);` }] })
      }
      if (dead > limits.deadRows && dead > live / 2 && (vacuumSeconds ?? Infinity) > recentSeconds) {
        const last = vacuumSeconds === null ? 'it was never vacuumed' : `it was last vacuumed ${describeAge(vacuumSeconds)} ago`
        found.push({
          code: 'DEAD_ROWS',
          subject,
          problem: `${name} has about ${plural(dead, 'dead row')} to ${live.toLocaleString('en-US')} live ones, and ${last}. Batches and reads walk over them.`,
          remedy: [{ advice: 'It disturbs nobody. If dead rows stay, something holds them back: see the findings about transactions and replication slots.' }, { sql: `VACUUM (ANALYZE) ${name};` }],
        })
      }
      return found
    }),
})
