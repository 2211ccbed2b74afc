import type { Found, FindingLevel } from './finding.ts'
import type { Facts } from './facts.ts'
import type { Limits } from './limits.ts'

export interface Context extends Facts {
  schema: string
  limits: Limits
  /** A command line of pgtally for this schema, its words quoted for the shell. */
  command: (...words: string[]) => string
}

/** One thing that the doctor looks at. To add one: a file here beside, a line in `checks.ts`, and the codes in docs/doctor.md. */
export interface Check<Code extends string = string, Row = never> {
  /** As the list of what is fine names it. */
  name: string
  /** Every finding that it can have, with its level. */
  codes: Readonly<Record<Code, FindingLevel>>
  /** Whether it reads pgtally's schema, which may be missing or of another version. */
  needsSchema: boolean
  /** One SELECT for all counters, never one for each; numbers beyond 2^53 as text. Undefined where the facts alone tell. */
  query?: (context: Context) => string
  find: (rows: Row[], context: Context) => Found<Code>[]
}

/** Gives a check its types: those of its rows are stated, and concern it alone; its codes are inferred. */
export const defineCheck =
  <Row = never>() =>
  <const Code extends string>(check: Check<Code, Row>): Check<Code> =>
    check

/** "1 hour 5 minutes", in at most two units. */
export function describeAge(seconds: number): string {
  const units = [['day', 86_400], ['hour', 3600], ['minute', 60], ['second', 1]] as const
  const first = units.findIndex(([, size]) => seconds >= size)
  if (first === -1) return 'less than a second'
  let rest = Math.floor(seconds)
  const parts = units.slice(first, first + 2).map(([name, size]) => {
    const count = Math.floor(rest / size)
    rest -= count * size
    return count === 0 ? '' : plural(count, name)
  })
  return parts.filter((part) => part !== '').join(' ')
}

export const plural = (count: number, noun: string): string => `${count.toLocaleString('en-US')} ${noun}${count === 1 ? '' : 's'}`

/** "a, b, c and 5 more" */
export function enumerate(names: readonly string[], most = 5): string {
  const shown = names.length > most + 1 ? most : names.length
  return names.slice(0, shown).join(', ') + (shown < names.length ? ` and ${names.length - shown} more` : '')
}

/** Seconds since a time, as an SQL expression. */
export const secondsSince = (time: string): string => `extract(epoch from clock_timestamp() - ${time})::float8`
