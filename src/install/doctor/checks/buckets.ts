import { defineCheck, describeAge } from '../check.ts'

interface Row {
  counter: string
  width: string
  retain: string
  overdueSeconds: number
  expire: string
}

/** Time buckets whose slots are not emptied in time. */
export const buckets = defineCheck<Row>()({
  name: 'expiry of time buckets',
  codes: { BUCKETS_NOT_EXPIRED: 'warning' },
  needsSchema: true,
  // A slot may be in use for a moment, and an hour is no matter.
  query: ({ schema }) => `
    select k.name as counter, b.width::text as width, b.retain::text as retain, format('SELECT ${schema}.expire_buckets(%L);', k.name) as expire,
      extract(epoch from ${schema}.kept_since(b) - b.kept_since)::float8 as "overdueSeconds"
    from ${schema}.bucket b join ${schema}.counter k using (counter_id)
    where b.slot_span is not null and ${schema}.kept_since(b) - b.kept_since >= greatest(b.slot_span, interval '1 hour') order by k.name, b.number`,
  find: (rows) =>
    rows.map(({ counter, width, retain, overdueSeconds, expire }) => ({
      code: 'BUCKETS_NOT_EXPIRED',
      subject: { kind: 'counter', name: counter },
      problem: `Its buckets of ${width} are to be kept for ${retain}, and are kept for ${describeAge(overdueSeconds)} longer: nobody empties them, or a transaction that reads them is always there. They grow.`,
      remedy: [{ advice: 'Start a worker, which empties them. Once:' }, { sql: expire }],
    })),
})
