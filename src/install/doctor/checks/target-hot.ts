import { defineCheck } from '../check.ts'

interface Row {
  counters: string[]
  table: string
  updates: number
  hot: number
}

const enoughHot = 0.5

/** Targets whose pages have no room for the next version of a row, by what the statistics say of their updates. */
export const targetHot = defineCheck<Row>()({
  name: 'HOT updates and fillfactor of targets',
  codes: { TARGET_NOT_HOT: 'warning' },
  needsSchema: true,
  query: ({ schema, limits }) => `
    select array_agg(distinct k.name order by k.name) as counters, c.oid::regclass::text as "table", s.n_tup_upd as updates, s.n_tup_hot_upd as hot
    from ${schema}.counter k
    join pg_class c on c.oid = k.target_table or c.oid in (select relid from pg_partition_tree(k.target_table))
    join pg_stat_all_tables s on s.relid = c.oid
    where c.relkind = 'r' and s.n_tup_upd >= ${limits.updates} and not exists (select from unnest(c.reloptions) o where o ~ '^fillfactor=' and o <> 'fillfactor=100')
      -- That an index contains the counted column is another finding, and the first to be dealt with.
      and not exists (select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey) where i.indrelid = c.oid and a.attname = k.target_column)
    group by c.oid, s.n_tup_upd, s.n_tup_hot_upd order by 2`,
  find: (rows) =>
    rows
      .filter(({ updates, hot }) => hot < enoughHot * updates)
      .map(({ counters, table, updates, hot }) => ({
        code: 'TARGET_NOT_HOT',
        subject: { kind: 'table', name: table },
        problem: `Of ${updates.toLocaleString('en-US')} updates only ${Math.floor((100 * hot) / updates)} % were heap-only (HOT), as its pages are full: the others wrote to every index of the table, for ${counters.join(', ')}.`,
        remedy: [
          { advice: 'Leave room on each page for new versions. Pages that are full become so as their rows are updated; VACUUM FULL would do it at once, but locks the table:' },
          { sql: `ALTER TABLE ${table} SET (fillfactor = 70);` },
        ],
      })),
})
