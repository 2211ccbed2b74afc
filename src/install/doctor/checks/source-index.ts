import { defineCheck } from '../check.ts'

interface Row {
  counters: string[]
  table: string
  key: string
  megabytes: number
  create: string[]
}

/** Large sources whose key no index finds: audits, backfills and reconciliations then read the whole table in one statement. */
export const sourceIndex = defineCheck<Row>()({
  name: 'indexes on the keys of sources',
  codes: { SOURCE_KEY_NOT_INDEXED: 'warning' },
  needsSchema: true,
  query: ({ schema, limits }) => `
    select array_agg(k.name order by k.name) as counters, s.source_table::text as "table", s.source_key as key, round(z.bytes / 1048576.0) as megabytes,
      case when c.relkind = 'p' then array(
        select format('CREATE INDEX CONCURRENTLY ON %s (%I);', t.relid::regclass, s.source_key) from pg_partition_tree(s.source_table) t where t.isleaf)
        || format('CREATE INDEX ON %s (%I);', s.source_table, s.source_key)
      else array[format('CREATE INDEX CONCURRENTLY ON %s (%I);', s.source_table, s.source_key)] end as create
    from ${schema}.source s
    join pg_class c on c.oid = s.source_table
    join ${schema}.consumer o using (queue_id)
    join ${schema}.counter k on k.counter_id = o.consumer_id
    join pg_attribute a on a.attrelid = k.target_table and a.attname = k.target_key and not a.attisdropped,
    lateral (
      select sum(pg_relation_size(t.oid)) as bytes from (select s.source_table::oid as oid union select relid from pg_partition_tree(s.source_table)) t) z
    where z.bytes > ${limits.sourceBytes} and not ${schema}.is_indexed(s.source_table, s.source_key, a.attcollation)
      and exists (select from pg_attribute y where y.attrelid = s.source_table and y.attname = s.source_key and not y.attisdropped)
    group by s.queue_id, s.source_table, s.source_key, c.relkind, z.bytes order by 2`,
  find: (rows) =>
    rows.map(({ counters, table, key, megabytes, create }) => ({
      code: 'SOURCE_KEY_NOT_INDEXED',
      subject: { kind: 'table', name: table },
      problem: `${table} (${megabytes.toLocaleString('en-US')} MB) has no index that begins with ${key}. Counting does not need one, but an audit, a backfill or a reconcile of ${counters.join(', ')} reads the whole table in one long statement.`,
      remedy: [
        ...(create.length > 1 ? [{ advice: 'One partition after the other, while writes go on; the last one finds them all there and takes a moment:' }] : []),
        { sql: create.join('\n') },
      ],
    })),
})
