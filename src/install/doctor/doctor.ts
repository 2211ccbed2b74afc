import type { Pool, PoolClient } from 'pg'

import { describeError, isConnectionError, isDatabaseError } from '../../errors.ts'
import { defaultSchema } from '../../schema.ts'
import { inTransaction } from '../../transaction.ts'
import type { Check, Context } from './check.ts'
import { enumerate } from './check.ts'
import { checks } from './checks.ts'
import { readFacts } from './facts.ts'
import type { FindingLevel, Found } from './finding.ts'
import { defaultLimits } from './limits.ts'
import type { Limits } from './limits.ts'

/** What the doctor says about its own work. */
const ownCodes = { NOT_CHECKED: 'warning', CHECK_FAILED: 'warning' } as const satisfies Record<string, FindingLevel>

type AnyCheck = Check | (typeof checks)[number]
type CodesOf<C> = C extends Check<infer Code> ? Code : never

/** Says what a finding is, for programs. It keeps its meaning from release to release. */
export type FindingCode = CodesOf<(typeof checks)[number]> | keyof typeof ownCodes

/** The level of each code. */
export const findingLevels = Object.assign({}, ownCodes, ...checks.map(({ codes }) => codes)) as Readonly<Record<FindingCode, FindingLevel>>

export interface Finding extends Found<FindingCode> {
  level: FindingLevel
}

export interface Diagnosis {
  /** Errors first, then warnings, then what is good to know. */
  findings: Finding[]
  /** What was looked at and found to be well. */
  fine: string[]
  /** What was not looked at. */
  notChecked: { check: string; reason: string }[]
}

// Only something like a migration holds a lock that a reader waits for.
const lockTimeoutMs = 200

/**
 * Looks for everything that makes counts wrong, late or slow, or soon will. Only reads, in short transactions: each check has a statement timeout of five seconds, takes no lock that
 * a writer would wait for, and one that fails does not stop the others.
 *
 * @param options.limits from where on something is mentioned
 * @param options.chosen the checks to do; all by default
 * @throws what the driver says where there is no connection
 */
export async function examine(pool: Pool, schema: string, { limits = defaultLimits, chosen = checks }: { limits?: Limits; chosen?: readonly AnyCheck[] } = {}): Promise<Diagnosis> {
  const facts = await readOnly(pool, limits, (client) => readFacts(client, schema))
  const command = (...words: string[]) => ['pgtally', ...words, ...(schema === defaultSchema ? [] : ['--schema', schema])].map(quoteWord).join(' ')
  const context: Context = { ...facts, schema, limits, command }
  const findings: Finding[] = []
  const fine: string[] = []
  const notChecked: Diagnosis['notChecked'] = []
  const forbidden: string[] = []

  for (const check of chosen as readonly Check[]) {
    if (check.needsSchema && !facts.schemaIsOwn) {
      notChecked.push({ check: check.name, reason: 'pgtally is not installed' })
      continue
    }
    let rows: unknown[] | undefined
    try {
      rows = check.query === undefined ? [] : await readRows(pool, limits, check.query(context))
      const found = check.find(rows as never[], context).map((one) => withLevel(one))
      findings.push(...found)
      // Where there is something to do, it is not all well.
      if (found.every(({ remedy }) => remedy.length === 0)) fine.push(check.name)
    } catch (error) {
      // Without a server there is no diagnosis.
      if (rows === undefined && isConnectionError(error)) throw error
      const reason = describeError(error)
      const state = isDatabaseError(error) ? error.code : undefined
      notChecked.push({ check: check.name, reason })
      if (state === '42501') forbidden.push(check.name)
      // A schema of another version is a finding already, and whatever follows from it is none.
      else if (!check.needsSchema || facts.schemaVersion === facts.expectedVersion) findings.push(withLevel(failed(check.name, state, reason, context)))
    }
  }
  if (forbidden.length > 0) findings.push(withLevel(notPermitted(forbidden, context)))
  const order: FindingLevel[] = ['error', 'warning', 'info']
  return { findings: findings.toSorted((one, other) => order.indexOf(one.level) - order.indexOf(other.level)), fine, notChecked }
}

const withLevel = (found: Found): Finding => ({ level: findingLevels[found.code as FindingCode], ...(found as Found<FindingCode>) })

function readOnly<T>(pool: Pool, { statementTimeoutMs }: Limits, work: (client: PoolClient) => Promise<T>): Promise<T> {
  return inTransaction(pool, async (client) => {
    // Without a search path names come out with their schemas, and mean the same wherever the remedy is pasted.
    await client.query(`set transaction read only; set local statement_timeout = ${statementTimeoutMs}; set local lock_timeout = ${lockTimeoutMs};
      set local search_path = pg_catalog; set local row_security = off; set local jit = off; set local max_parallel_workers_per_gather = 0`)
    return work(client)
  })
}

function readRows(pool: Pool, limits: Limits, query: string): Promise<unknown[]> {
  return readOnly(pool, limits, async (client) => {
    // As JSON text, which no type parser of the caller's changes.
    const { rows } = await client.query<{ rows: string }>(`select coalesce(json_agg(to_json(found)), '[]')::text as rows from (${query}) found`)
    return JSON.parse(rows[0]?.rows ?? '[]') as unknown[]
  })
}

function failed(check: string, state: string | undefined, reason: string, { database, limits }: Context): Found<FindingCode> {
  const timeout = state === '57014'
  return {
    code: 'CHECK_FAILED',
    subject: { kind: 'database', name: database },
    problem: `Not checked: ${check}. ${timeout ? `It took more than ${limits.statementTimeoutMs / 1000} seconds, and was cancelled so as to do no harm` : reason}.`,
    remedy: [{ advice: timeout ? 'Try again when the server is less busy.' : 'Try again; if it stays, report it as a bug of pgtally, with this message.' }],
  }
}

function notPermitted(names: readonly string[], { role, command }: Context): Found<FindingCode> {
  return {
    code: 'NOT_CHECKED',
    subject: { kind: 'role', name: role },
    problem: `Not checked, for this role may not read what they need: ${enumerate(names, names.length)}.`,
    remedy: [{ advice: 'Run it as the owner of the schema; or let this role read, as that owner:' }, { command: command('grant', '--reader', role) }],
  }
}

const quoteWord = (word: string) => (/^[\w./:@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)
