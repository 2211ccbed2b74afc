import { defineCheck, describeAge, plural, secondsSince } from '../check.ts'

interface Row {
  queue: string
  consumer: string
  letters: number
  newestSeconds: number
  reason: string
}

/** Events that a consumer has given up. */
export const deadLetters = defineCheck<Row>()({
  name: 'dead letters',
  codes: { DEAD_LETTERS: 'warning' },
  needsSchema: true,
  query: ({ schema }) => `
    select q.name as queue, c.name as consumer, count(*) as letters, ${secondsSince('max(f.failed_at)')} as "newestSeconds", (array_agg(f.reason order by f.failed_event_id desc))[1] as reason
    from ${schema}.failed_event f join ${schema}.consumer c using (consumer_id) join ${schema}.queue q using (queue_id)
    where f.retry_at is null group by 1, 2 order by 1, 2`,
  find: (rows, { command }) =>
    rows.map(({ queue, consumer, letters, newestSeconds, reason }) => ({
      code: 'DEAD_LETTERS',
      subject: { kind: 'consumer', name: `${queue} ${consumer}` },
      problem: `${plural(letters, 'event')} could not be handled and ${letters === 1 ? 'was' : 'were'} given up, the last one ${describeAge(newestSeconds)} ago: ${reason}`,
      remedy: [
        { advice: 'See which they are:' },
        { command: command('consumer', 'dead-letters', queue, consumer) },
        { advice: 'When what they failed at is mended, give them again; or remove them for good:' },
        { command: command('consumer', 'replay', queue, consumer) },
        { command: command('consumer', 'purge', queue, consumer) },
      ],
    })),
})
