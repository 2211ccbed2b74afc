import { defineCheck } from '../check.ts'
import type { Found } from '../finding.ts'

interface Row {
  owner: boolean
  ownerName: string
  /** May call what a worker calls, and write to pgtally's own tables. */
  worker: boolean
  reader: boolean
  writer: boolean
  unwritable: { counter: string; target: string; grant: string; by: string }[]
}

/** What the current role may do with pgtally. */
export const role = defineCheck<Row>()({
  name: 'privileges of this role',
  codes: { TARGET_NOT_WRITABLE: 'warning', ROLE: 'info', STANDBY: 'info' },
  needsSchema: true,
  query: ({ schema }) => `
    with mine as (
      select pg_has_role(n.nspowner, 'usage') as owner, pg_get_userbyid(n.nspowner) as "ownerName",
        has_schema_privilege(n.oid, 'usage') and has_table_privilege(b.oid, 'insert') and f.may[array_position(f.names, 'apply_batch')] as worker,
        has_schema_privilege(n.oid, 'usage') and f.may[array_position(f.names, 'get_counts')] as reader,
        has_schema_privilege(n.oid, 'usage') and f.may[array_position(f.names, 'add_events')] as writer
      from pg_namespace n join pg_class b on b.relnamespace = n.oid and b.relname = 'batch',
      lateral (select array_agg(p.proname::text) as names, array_agg(has_function_privilege(p.oid, 'execute')) as may from pg_proc p where p.pronamespace = n.oid) f
      where n.nspname = '${schema}'
    )
    select mine.*, case when not mine.worker then '[]' else (
      select coalesce(json_agg(json_build_object('counter', k.name, 'target', c.oid::regclass, 'by', pg_get_userbyid(c.relowner),
        'grant', format('GRANT SELECT, UPDATE%s ON %s TO %I;', case k.on_missing when 'insert' then ', INSERT' else '' end, c.oid::regclass, current_user)) order by k.name), '[]')
      from ${schema}.counter k join pg_class c on c.oid = k.target_table
      where not (has_table_privilege(c.oid, 'select') and has_any_column_privilege(c.oid, 'update') and (k.on_missing <> 'insert' or has_any_column_privilege(c.oid, 'insert')))
    ) end as unwritable
    from mine`,
  find: ([mine], { role: name, standby, database }) => {
    if (mine === undefined) return []
    const subject = { kind: 'role', name } as const
    const may = [
      ...(mine.owner ? ['install and upgrade, and create counters (it has the rights of the owner)'] : []),
      ...(mine.worker ? ['run a worker'] : []),
      ...(mine.reader ? ['read counts'] : []),
      ...(mine.writer ? ['add events'] : []),
    ]
    const found: Found<'TARGET_NOT_WRITABLE' | 'ROLE' | 'STANDBY'>[] = mine.unwritable.map(({ counter, target, grant, by }) => ({
      code: 'TARGET_NOT_WRITABLE',
      subject: { kind: 'counter', name: counter },
      problem: `The role "${name}" may run a worker, but not update ${target}: with it, "${counter}" cannot be applied.`,
      remedy: [{ advice: `As the role "${by}", which owns the table:` }, { sql: grant }],
    }))
    found.push({ code: 'ROLE', subject, problem: `You are the role "${name}", which may ${may.length === 0 ? 'do nothing with pgtally' : may.join('; ')}. The owner is "${mine.ownerName}".`, remedy: [] })
    if (standby) {
      const problem = 'This is a standby: counts can be read here, workers run on the primary. What statistics say of updates and vacuum is known on the primary only.'
      found.push({ code: 'STANDBY', subject: { kind: 'database', name: database }, problem, remedy: [{ advice: 'Run the doctor there, too.' }] })
    }
    return found
  },
})
