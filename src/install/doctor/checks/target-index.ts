import { defineCheck } from '../check.ts'

interface Row {
  counter: string
  table: string
  column: string
  index: string
  drop: string
}

/** Indexes that contain the counted column: each count then writes to every index of the table. */
export const targetIndex = defineCheck<Row>()({
  name: 'indexes on counted columns',
  codes: { TARGET_COLUMN_INDEXED: 'warning' },
  needsSchema: true,
  query: ({ schema, serverVersion }) => `
    select distinct k.name as counter, i.indrelid::regclass::text as "table", k.target_column as column, i.indexrelid::regclass::text as index,
      case when o.conname is not null then format('ALTER TABLE %s DROP CONSTRAINT %I;', i.indrelid::regclass, o.conname)
        else format('DROP INDEX %s%s;', case when x.relkind = 'I' then '' else 'CONCURRENTLY ' end, i.indexrelid::regclass) end as drop
    from ${schema}.counter k
    join (select k.counter_id, k.target_table::oid as oid from ${schema}.counter k union select k.counter_id, t.relid from ${schema}.counter k, pg_partition_tree(k.target_table) t) t using (counter_id)
    join pg_attribute a on a.attrelid = t.oid and a.attname = k.target_column and not a.attisdropped
    join pg_index i on i.indrelid = t.oid
    join pg_class x on x.oid = i.indexrelid
    join pg_am m on m.oid = x.relam
    left join pg_constraint o on o.conindid = i.indexrelid and o.contype in ('p', 'u', 'x')
    -- From version 16 on, one that only sums up blocks of the table does no harm. That of a partition goes with that of the whole table.
    where not (m.amname = 'brin' and ${serverVersion} >= 160000) and not x.relispartition
      and (a.attnum = any (i.indkey) or exists (
        select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid and d.refobjsubid = a.attnum))
    order by 1, 4`,
  find: (rows) =>
    rows.map(({ counter, table, column, index, drop }) => ({
      code: 'TARGET_COLUMN_INDEXED',
      subject: { kind: 'counter', name: counter },
      problem: `The index ${index} contains ${table}.${column}. So no update of a count can be heap-only (HOT): each writes to all indexes of the table and leaves dead entries there.`,
      remedy: [
        { advice: 'If queries sort by it ("most liked"), define the counter with a ranking, which top() reads (docs/trends.md). If no query needs it:' },
        { sql: drop },
      ],
    })),
})
