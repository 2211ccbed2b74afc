import { defineCheck } from '../check.ts'
import type { Remedy } from '../finding.ts'

interface Row {
  counter: string
  code: string
  problem: string
  table: string | null
  tableDropped: boolean
  createUnique: string
  addColumn: string
}

const codes = {
  BACKFILL_MISSING: 'error',
  PARTITIONS_NOT_COUNTED: 'error',
  RECONCILE_UNFINISHED: 'warning',
  SOURCE_DROPPED: 'error',
  SOURCE_CHANGED: 'error',
  TARGET_DROPPED: 'error',
  TARGET_CHANGED: 'error',
  TARGET_KEY_NOT_UNIQUE: 'error',
} as const

/** The definitions of counters against the tables as they are now, and what is left to count; what `status` calls problems. */
export const counters = defineCheck<Row>()({
  name: 'definitions of counters',
  codes,
  needsSchema: true,
  query: ({ schema }) => `
    select k.name as counter, f.code, f.problem, k.target_table::text as "table",
      format('CREATE UNIQUE INDEX CONCURRENTLY ON %s (%I);', k.target_table, k.target_key) as "createUnique",
      format('ALTER TABLE %s ADD COLUMN %I bigint NOT NULL DEFAULT 0;', k.target_table, k.target_column) as "addColumn"
    from ${schema}.counter k, ${schema}.counter_findings(k.name) f order by k.name`,
  find: (rows, { command }) =>
    rows.flatMap(({ counter, code, problem, createUnique, addColumn }) => {
      const reconcile = { command: command('reconcile', counter) }
      const drop = { command: command('counter', 'drop', counter) }
      const again = { advice: 'Then create it again as it was defined, for the tables as they are now. Its backfill corrects only what has changed.' }
      const remedies: Record<keyof typeof codes, Remedy[]> = {
        BACKFILL_MISSING: [reconcile],
        PARTITIONS_NOT_COUNTED: [reconcile],
        RECONCILE_UNFINISHED: [{ advice: 'Nothing, if it is running. Otherwise this goes on from there:' }, reconcile],
        SOURCE_DROPPED: [drop, again],
        SOURCE_CHANGED: [{ advice: 'At once, so that writes to the table work again:' }, drop, again],
        TARGET_DROPPED: [drop, again],
        TARGET_CHANGED: [
          { advice: `If a column was renamed, rename it back: nothing is lost. If the count's column is gone, this gives it back: ${addColumn} In any case this ends it:` },
          drop,
          again,
        ],
        TARGET_KEY_NOT_UNIQUE: [{ sql: createUnique }],
      }
      // OTHER_CLUSTER and those of triggers have checks of their own, which say more.
      return isCode(code) ? [{ code, subject: { kind: 'counter', name: counter } as const, problem, remedy: remedies[code] }] : []
    }),
})

const isCode = (code: string): code is keyof typeof codes => Object.hasOwn(codes, code)
