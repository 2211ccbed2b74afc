import { defineCheck, enumerate } from '../check.ts'
import type { Found } from '../finding.ts'

interface Row {
  queue: string
  counters: string[]
  table: string
  isRoot: boolean
  /** Whether it belongs to the source now. */
  wanted: boolean
  present: { name: string; operation: string; enabled: string }[]
  missing: string[]
  owner: string
  owned: boolean
  sync: string
}

type Code = 'TRIGGER_DISABLED' | 'TRIGGER_MISSING' | 'TRIGGER_LEFT' | 'PARTITION_WITHOUT_TRIGGERS'

/** Each table and partition of each source has all of its triggers, and they fire. */
export const triggers = defineCheck<Row>()({
  name: 'triggers of sources and partitions',
  codes: { TRIGGER_DISABLED: 'error', TRIGGER_MISSING: 'error', TRIGGER_LEFT: 'error', PARTITION_WITHOUT_TRIGGERS: 'warning' },
  needsSchema: true,
  query: ({ schema }) => `
    with wanted as (
      select s.queue_id, t.oid, t.oid = s.source_table as is_root
      from ${schema}.source s, lateral (select s.source_table::oid as oid union select relid from pg_partition_tree(s.source_table)) t
      -- Where its key column is gone, the table is another one, and no trigger can be made.
      where exists (select from pg_attribute a where a.attrelid = s.source_table and a.attname = s.source_key and not a.attisdropped)
    ), present as (
      select g.tgrelid as oid, (regexp_match(p.proname, '\\d+'))[1]::int as queue_id, json_agg(json_build_object(
        'name', quote_ident(g.tgname), 'operation', (regexp_match(p.proname, '[a-z]+$'))[1], 'enabled', g.tgenabled)) as triggers
      from pg_trigger g join pg_proc p on p.oid = g.tgfoid
      where p.pronamespace = '${schema}'::regnamespace and p.proname ~ '^source_\\d+_(insert|update|delete|truncate)$' group by 1, 2
    )
    select * from (
      select q.name as queue, c.oid::regclass::text as table, coalesce(w.is_root, false) as "isRoot", w.oid is not null as wanted, coalesce(p.triggers, '[]') as present,
        array(
          select o from unnest(array['insert', 'update', 'delete'] || case c.relkind when 'r' then '{truncate}' else '{}' end::text[]) o
          where not exists (select from json_array_elements(p.triggers) t where t ->> 'operation' = o)) as missing,
        pg_get_userbyid(c.relowner) as owner, pg_has_role(c.relowner, 'usage') as owned, format('SELECT ${schema}.sync_triggers(%L);', q.name) as sync,
        array(select k.name from ${schema}.counter k join ${schema}.consumer o on o.consumer_id = k.counter_id where o.queue_id = q.queue_id order by k.name) as counters
      from wanted w full join present p using (oid, queue_id)
      join pg_class c using (oid) join ${schema}.queue q using (queue_id)
      where p.oid is null or w.oid is not null or exists (select from ${schema}.source s join pg_attribute a on a.attrelid = s.source_table and a.attname = s.source_key where s.queue_id = q.queue_id)
    ) found
    where not wanted or missing <> '{}' or exists (select from json_array_elements(present) t where t ->> 'enabled' not in ('O', 'A'))
    order by queue, "isRoot" desc, "table"`,
  find: (rows, { command }) =>
    rows.flatMap(({ queue, counters, table, isRoot, wanted, present, missing, owner, owned, sync }) => {
      const subject = { kind: 'table', name: table } as const
      const reconcile = counters.map((counter) => ({ command: command('reconcile', counter) }))
      const counted = `the counters of the queue "${queue}" (${enumerate(counters)})`
      const found: Found<Code>[] = []
      if (!wanted) {
        const problem = `${table} is no partition of the source any more, but still has its triggers: what is written there is counted for ${counted}.`
        return [{ code: 'TRIGGER_LEFT', subject, problem, remedy: [{ sql: sync }, ...reconcile] } satisfies Found<Code>]
      }
      const silent = present.filter(({ enabled }) => enabled !== 'O' && enabled !== 'A')
      if (silent.length > 0) {
        const how = silent.every(({ enabled }) => enabled === 'R') ? 'fire on replicas only' : 'are disabled'
        found.push({
          code: 'TRIGGER_DISABLED',
          subject,
          problem: `Triggers of ${table} ${how} (${silent.map(({ operation }) => operation).join(', ')}): rows that are written there are not counted by ${counted}.`,
          remedy: [{ sql: silent.map(({ name }) => `ALTER TABLE ${table} ENABLE TRIGGER ${name};`).join('\n') }, ...reconcile],
        })
      }
      const asOwner = owned ? [] : [{ advice: `As the role "${owner}", which owns the table, or one that has TRIGGER on it:` }]
      if (missing.length > 0 && present.length === 0 && !isRoot) {
        found.push({
          code: 'PARTITION_WITHOUT_TRIGGERS',
          subject,
          problem: `The partition ${table} has no triggers yet: statements on it by its own name are not counted by ${counted}; those on the whole table are. Workers see to that within seconds, if they may.`,
          remedy: [...asOwner, { sql: sync }, { advice: 'Where rows came with the partition, or were written to it by its name:' }, ...reconcile],
        })
      } else if (missing.length > 0) {
        const drops = present.map(({ name }) => `DROP TRIGGER ${name} ON ${table};\n`).join('')
        found.push({
          code: 'TRIGGER_MISSING',
          subject,
          problem: `Triggers of ${table} are missing (${missing.join(', ')}): that is not counted by ${counted}.`,
          remedy: [...asOwner, { sql: `BEGIN;\nSET LOCAL lock_timeout = '2s';\n${drops}${sync}\nCOMMIT;` }, ...reconcile],
        })
      }
      return found
    }),
})
