import { defineCheck, describeAge, secondsSince } from '../check.ts'

interface Row {
  name: string
  owner: string
  seconds: number
  rollback: string
}

/** Prepared transactions that nobody has ended: they outlive their session and the server. */
export const preparedTransactions = defineCheck<Row>()({
  name: 'prepared transactions',
  codes: { PREPARED_TRANSACTION: 'warning' },
  needsSchema: false,
  query: ({ limits }) => `
    select gid as name, owner, ${secondsSince('prepared')} as seconds, format('ROLLBACK PREPARED %L;', gid) as rollback
    from pg_prepared_xacts where database = current_database() and prepared < clock_timestamp() - make_interval(secs => ${limits.preparedTransactionSeconds}) order by prepared`,
  find: (rows) =>
    rows.map(({ name, owner, seconds, rollback }) => ({
      code: 'PREPARED_TRANSACTION',
      subject: { kind: 'session', name: `prepared transaction ${name}` },
      problem: `It was prepared ${describeAge(seconds)} ago by ${owner} and has not ended since. It keeps its locks, also over a restart, and holds back vacuum; its likes are not counted yet, and slots that it wrote to cannot be emptied.`,
      remedy: [{ advice: 'Ask its coordinator what it decided: COMMIT PREPARED, or, if nobody knows of it any more:' }, { sql: rollback }],
    })),
})
