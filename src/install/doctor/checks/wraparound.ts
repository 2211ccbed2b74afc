import { defineCheck } from '../check.ts'

interface Row {
  database: string
  transactions: number
  multixacts: number
}

const million = (count: number) => `${Math.floor(count / 1_000_000).toLocaleString('en-US')} million`

/** How far autovacuum is behind in freezing this database. */
export const wraparound = defineCheck<Row>()({
  name: 'wraparound of transaction ids',
  codes: { WRAPAROUND_NEAR: 'error', WRAPAROUND_AGE: 'warning' },
  needsSchema: false,
  query: () => `select datname as database, age(datfrozenxid) as transactions, mxid_age(datminmxid) as multixacts from pg_database where datname = current_database()`,
  find: ([row], { limits }) => {
    if (row === undefined) return []
    const age = Math.max(row.transactions, row.multixacts)
    if (age <= limits.wraparoundAge) return []
    return [{
      code: age > limits.wraparoundAgeNear ? 'WRAPAROUND_NEAR' : 'WRAPAROUND_AGE',
      subject: { kind: 'database', name: row.database },
      problem: `Rows of ${million(age)} ${row.multixacts > row.transactions ? 'multixacts' : 'transactions'} ago are not frozen. Near 2,000 million the server refuses all writes, likes too. Vacuum does not get through, or something holds it back.`,
      remedy: [{ advice: 'First end what the findings about transactions and replication slots name. Then, as a superuser or the owner, which reads every table that is due:' }, { sql: 'VACUUM (FREEZE);' }],
    }]
  },
})
