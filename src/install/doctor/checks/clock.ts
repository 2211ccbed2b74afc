import { defineCheck, describeAge } from '../check.ts'
import type { Found } from '../finding.ts'

interface Row {
  queue: string
  /** How far in the future the newest event is, and the newest end of a batch. */
  eventSeconds: number
  batchSeconds: number
  repair: string
}

/** Traces of a server's clock that was ahead and was set back: events and batches of the future. Which event counts never depends on the clock. */
export const clock = defineCheck<Row>()({
  name: "the server's clock",
  codes: { CLOCK_SET_BACK: 'warning' },
  needsSchema: true,
  query: ({ schema, limits }) => `
    with slots as materialized (select * from ${schema}.slot_status())
    select * from (
      select q.name as queue, coalesce((select extract(epoch from max(s.newest) - clock_timestamp()) from slots s where s.queue = q.name), 0)::float8 as "eventSeconds",
        coalesce((
          select extract(epoch from max(b.finished_at) - clock_timestamp()) from ${schema}.batch b join ${schema}.consumer c using (consumer_id) where c.queue_id = q.queue_id), 0)::float8 as "batchSeconds",
        format('UPDATE ${schema}.batch SET finished_at = clock_timestamp() WHERE finished_at > clock_timestamp()' ||
          ' AND consumer_id IN (SELECT consumer_id FROM ${schema}.consumer WHERE queue_id = %s);', q.queue_id) as repair
      from ${schema}.queue q
    ) ahead where greatest("eventSeconds", "batchSeconds") > ${limits.clockSeconds} order by queue`,
  find: (rows) =>
    rows.map(({ queue, eventSeconds, batchSeconds, repair }) => {
      const consequences = [
        ...(eventSeconds > 0 ? [`events are dated ${describeAge(eventSeconds)} in the future, so lags are shown too short`] : []),
        ...(batchSeconds > 0 ? [`batches were finished ${describeAge(batchSeconds)} in the future, so no slot is emptied until then`] : []),
      ]
      const found: Found<'CLOCK_SET_BACK'> = {
        code: 'CLOCK_SET_BACK',
        subject: { kind: 'queue', name: queue },
        problem: `The server's clock was ahead and has been set back: ${consequences.join('; ')}. Counts are right all the same.`,
        remedy: [
          { advice: 'Make sure that the clock is kept by NTP now: timedatectl. Dates of events go away with their slots.' },
          ...(batchSeconds > 0 ? [{ advice: 'So that slots are emptied again in a minute:' }, { sql: repair }] : []),
        ],
      }
      return found
    }),
})
