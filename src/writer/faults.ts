import { isDatabaseError } from '../errors.ts'

// About the session, the server, the statement or other transactions, whichever rows it has.
const systemStates = /^(08|0A|25|26|28|3D|3F|40|42|53|54|55|57|58|F0|HV|XX)/
// An exception to these: a policy that forbids a row, or a trigger (insufficient_privilege), and a value too long for an index (program_limit_exceeded).
const rowStates = new Set(['42501', '54000'])

/** Whether a row may be at fault, so that others may go through without it. A trigger of the application's may raise whatever it likes. */
export function isRowFault(error: unknown): boolean {
  return isDatabaseError(error) && !isLost(error) && (rowStates.has(error.code) || !systemStates.test(error.code))
}

/** Whether the connection went while a statement was under way, so that it is not known whether that was committed. */
export function isLost(error: unknown): boolean {
  // Whatever does not come from the server: the connection broke, or the client did not wait any longer.
  if (!isDatabaseError(error)) return true
  // 40003 is a proxy that does not know itself. `severity` is in the server's language, but for most of them these two words are the same.
  return /^(08|57P0|40003)/.test(error.code) || error.severity === 'FATAL' || error.severity === 'PANIC'
}

/** Whether the table, or what may be done with it, may no longer be as it was when it was looked up. */
export function isAboutTable(error: unknown): boolean {
  return isDatabaseError(error) && /^(42|3F)/.test(error.code)
}
