import { defineCheck, enumerate } from '../check.ts'

/** Positions of another cluster, after a restore or pg_upgrade. */
export const cluster = defineCheck<{ queue: string }>()({
  name: 'restored positions',
  codes: { OTHER_CLUSTER: 'error' },
  needsSchema: true,
  query: ({ schema }) => `
    select q.name as queue from ${schema}.queue q
    where exists (select from ${schema}.consumer c where c.queue_id = q.queue_id and c.system_identifier <> ${schema}.system_identifier()) order by q.name`,
  find: (rows, { database, command }) =>
    rows.length === 0
      ? []
      : [{
          code: 'OTHER_CLUSTER',
          subject: { kind: 'database', name: database },
          problem: `The database was restored into another cluster, or upgraded. Until positions are those of this one, nothing is applied from the queues ${enumerate(rows.map(({ queue }) => queue))}. Events are kept, likes go on.`,
          remedy: [{ command: command('rebase') }],
        }],
})
