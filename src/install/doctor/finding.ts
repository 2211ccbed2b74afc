/** `error`: counts are wrong or stand still, or soon will. `warning`: it will hurt later, or slows things down. `info`: good to know. */
export type FindingLevel = 'error' | 'warning' | 'info'

/** What a finding is about. */
export interface Subject {
  kind: 'server' | 'database' | 'schema' | 'role' | 'session' | 'table' | 'queue' | 'counter' | 'consumer'
  name: string
}

/** SQL to run in the database, a command for the shell, or what to do where neither can be given. In the order in which they are to be done. */
export type Remedy = { sql: string } | { command: string } | { advice: string }

/** A finding of a check whose codes are `Code`. */
export interface Found<Code extends string = string> {
  code: Code
  subject: Subject
  /** What is wrong and why it matters, in plain sentences. */
  problem: string
  remedy: Remedy[]
}
