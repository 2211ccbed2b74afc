import { defineCheck } from '../check.ts'
import type { Remedy } from '../finding.ts'

interface Row {
  name: string
  isSlot: boolean
  active: boolean
  age: number
  drop: string
}

/** Replication slots and standbys (hot_standby_feedback) that hold back vacuum on this server. */
export const replicationSlots = defineCheck<Row>()({
  name: 'replication slots and standbys',
  codes: { REPLICATION_SLOT_HOLDS: 'warning', STANDBY_HOLDS: 'warning' },
  needsSchema: false,
  query: ({ limits }) => `
    select * from (
      select slot_name as name, true as "isSlot", active, age(xmin) as age, format('SELECT pg_drop_replication_slot(%L);', slot_name) as drop from pg_replication_slots where xmin is not null
      union all
      select coalesce(nullif(application_name, ''), host(client_addr), pid::text), false, true, age(backend_xmin), '' from pg_stat_replication where backend_xmin is not null
    ) held where age > ${limits.heldTransactions} order by age desc`,
  find: (rows) =>
    rows.map(({ name, isSlot, active, age, drop }) => {
      const onStandby = 'It holds back vacuum here for a query on the standby (hot_standby_feedback). Find it there with `pgtally doctor`, and end it.'
      const remedy: Remedy[] = active ? [{ advice: onStandby }] : [{ advice: 'Start the standby or subscriber again; if it is gone for good:' }, { sql: drop }]
      return {
        code: isSlot ? 'REPLICATION_SLOT_HOLDS' : 'STANDBY_HOLDS',
        subject: { kind: 'server', name: `${isSlot ? 'replication slot' : 'standby'} ${name}` },
        problem: `${isSlot ? `The replication slot "${name}"${active ? '' : ', which nobody uses,'}` : `The standby "${name}"`} holds back vacuum since ${age.toLocaleString('en-US')} transactions ago: dead rows pile up in every table, and each batch and foreign-key check on a hot post gets slower.`,
        remedy,
      }
    }),
})
