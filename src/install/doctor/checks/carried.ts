import { defineCheck, describeAge, secondsSince } from '../check.ts'
import type { Remedy } from '../finding.ts'

interface Row {
  counter: string
  key: string
  target: string
  seconds: number
  pid: number | null
  session: string | null
  gid: string | null
  rollback: string | null
}

/** Keys whose deltas could not be added for long, and who has their rows locked. */
export const carried = defineCheck<Row>()({
  name: 'carried keys',
  codes: { CARRIED_LONG: 'warning' },
  needsSchema: true,
  query: ({ schema, limits }) => `
    select l.counter, l.key, l.target::text as target, ${secondsSince('l.since')} as seconds, l.pid,
      concat_ws(', ', nullif(a.application_name, ''), a.usename, a.state) as session, l.gid, format('ROLLBACK PREPARED %L;', l.gid) as rollback
    from ${schema}.carried_locks(make_interval(secs => ${limits.carriedSeconds})) l left join pg_stat_activity a using (pid) order by l.counter`,
  find: (rows, { command }) =>
    rows.map(({ counter, key, target, seconds, pid, session, gid, rollback }) => {
      const holder =
        pid !== null ? `Session ${pid} (${session}) has it locked.` : gid === null ? 'At this moment nobody has it locked: no worker runs, or the row is locked again and again.' : `The prepared transaction "${gid}" has it locked.`
      const remedy: Remedy[] = []
      if (pid !== null) remedy.push({ advice: 'This rolls its transaction back:' }, { sql: `SELECT pg_terminate_backend(${pid});` })
      else if (gid !== null && rollback !== null) remedy.push({ advice: 'Or COMMIT PREPARED, as its coordinator decided:' }, { sql: rollback })
      return {
        code: 'CARRIED_LONG',
        subject: { kind: 'counter', name: counter },
        problem: `A delta for the key ${key} of ${target} has waited for ${describeAge(seconds)} for the row to be free; its stored count is behind by that. ${holder}`,
        remedy: [...remedy, { advice: 'Workers add it then by themselves. Without one:' }, { command: command('drain') }],
      }
    }),
})
