import { defineCheck, describeAge, enumerate, secondsSince } from '../check.ts'
import type { Remedy } from '../finding.ts'

interface Row {
  queue: string
  slots: number[]
  bytes: number
  oldestSeconds: number
  counters: string[]
  consumers: string[]
  sessions: { pid: number; name: string; state: string; seconds: number | null }[]
  prepared: { name: string; rollback: string }[]
  rotate: string
}

/** Slots that are not emptied in time, and whom they wait for. */
export const slots = defineCheck<Row>()({
  name: 'emptying of slots',
  codes: { SLOTS_NOT_EMPTIED: 'warning' },
  needsSchema: true,
  query: ({ schema }) => `
    with overdue as materialized (select * from ${schema}.slot_status() where overdue),
    waits as (
      select distinct o.queue, u.name, exists (select from ${schema}.counter k where k.name = u.name) as counter from overdue o, unnest(o.waits_for) u(name)
    ), lockers as (
      select distinct o.queue, l.pid, l.virtualtransaction from overdue o join pg_locks l on l.relation = o.slot_table::oid and l.database = (select oid from pg_database where datname = current_database())
      where l.granted and l.pid is distinct from pg_backend_pid()
    )
    select q.queue, q.slots, q.bytes, q."oldestSeconds", format('SELECT ${schema}.rotate(%L);', q.queue) as rotate,
      array(select w.name from waits w where w.queue = q.queue and w.counter order by 1) as counters,
      array(select w.name from waits w where w.queue = q.queue and not w.counter order by 1) as consumers,
      (select coalesce(json_agg(json_build_object('pid', a.pid, 'name', coalesce(nullif(a.application_name, ''), a.usename, 'unknown'), 'state', coalesce(a.state, 'unknown'),
          'seconds', ${secondsSince('a.xact_start')}) order by a.xact_start), '[]')
        from lockers l join pg_stat_activity a using (pid) where l.queue = q.queue) as sessions,
      (select coalesce(json_agg(json_build_object('name', p.gid, 'rollback', format('ROLLBACK PREPARED %L;', p.gid))), '[]')
        from lockers l join pg_locks x on x.virtualtransaction = l.virtualtransaction and x.locktype = 'transactionid' and x.pid is null join pg_prepared_xacts p on p.transaction = x.transactionid
        where l.queue = q.queue and l.pid is null) as prepared
    from (
      select queue, array_agg(slot order by slot) as slots, sum(bytes)::int8 as bytes, ${secondsSince('min(oldest)')} as "oldestSeconds" from overdue group by queue
    ) q order by q.queue`,
  find: (rows, { command }) =>
    rows.map(({ queue, slots: numbers, bytes, oldestSeconds, counters, consumers, sessions, prepared, rotate }) => {
      const blamed = [
        ...(counters.length > 0 ? [`${several('counter', counters)} not applied them`] : []),
        ...(consumers.length > 0 ? [`${several('consumer', consumers)} not finished them`] : []),
        ...sessions.map(({ pid, name, state, seconds }) => `session ${pid} (${name}, ${state}), whose transaction ${seconds === null ? '' : `of ${describeAge(seconds)} `}has locked a slot`),
        ...prepared.map(({ name }) => `the prepared transaction "${name}", which has locked a slot`),
      ]
      const remedy: Remedy[] = [
        ...(counters.length > 0 ? [{ command: command('drain') }] : []),
        ...consumers.flatMap((consumer) => [{ advice: `Start the process that runs "${consumer}"; or, if what is pending for it is not needed:` }, { command: command('consumer', 'skip', queue, consumer) }]),
        ...(sessions.length > 0 ? [{ sql: sessions.map(({ pid }) => `SELECT pg_terminate_backend(${pid});`).join('\n') }] : []),
        ...prepared.map(({ rollback }) => ({ sql: rollback })),
        { advice: blamed.length > 0 ? 'Workers empty them a minute later. Without one:' : 'Start a worker, which empties them; or, once:' },
        { sql: rotate },
      ]
      const why = blamed.length > 0 ? `They wait for ${blamed.join('; ')}.` : 'Nobody holds them: no worker runs that empties them.'
      return {
        code: 'SLOTS_NOT_EMPTIED',
        subject: { kind: 'queue', name: queue },
        problem: `${numbers.length === 1 ? 'Slot' : 'Slots'} ${numbers.join(', ')} hold${numbers.length === 1 ? 's' : ''} events of ${describeAge(oldestSeconds)} ago, ${(bytes / 2 ** 20).toFixed(1)} MB, and ${numbers.length === 1 ? 'was' : 'were'} to be empty by now; they grow. ${why}`,
        remedy,
      }
    }),
})

const several = (kind: string, names: readonly string[]) => `the ${kind}${names.length === 1 ? '' : 's'} ${enumerate(names)}, which ${names.length === 1 ? 'has' : 'have'}`
