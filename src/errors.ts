/** What went wrong, for programs; the message says it to people, with the remedy. */
export type PgtallyErrorCode =
  | 'NOT_INSTALLED'
  | 'SCHEMA_TOO_NEW'
  | 'SCHEMA_TOO_OLD'
  | 'SERVER_TOO_OLD'
  | 'READ_ONLY'
  | 'PERMISSION_DENIED'
  | 'INVALID_ARGUMENT'
  | 'INVALID_DEFINITION'
  | 'DEFINITION_CONFLICT'
  | 'NOT_FOUND'
  | 'IN_USE'
  | 'INVALID_EVENT'
  | 'ISOLATION'
  | 'OTHER_CLUSTER'
  | 'BOUNDARY_BACKWARDS'
  | 'MISSING_TARGET_ROW'
  | 'NOT_APPLICABLE'
  | 'LOCK_TIMEOUT'
  | 'TIMEOUT'
  | 'UNSAFE_COUNT'
  | 'WRITER_FULL'
  | 'CLOSED'
  | 'OUTCOME_UNKNOWN'
  | 'BATCH_LOST'
  | 'OUT_OF_STEP'

export class PgtallyError extends Error {
  override readonly name = 'PgtallyError'
  readonly code: PgtallyErrorCode

  constructor(code: PgtallyErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** SQLSTATEs that only pgtally's own SQL functions raise. */
const ownStates: Readonly<Record<string, PgtallyErrorCode>> = {
  TL001: 'NOT_FOUND',
  TL002: 'DEFINITION_CONFLICT',
  TL003: 'INVALID_DEFINITION',
  TL004: 'ISOLATION',
  TL005: 'OTHER_CLUSTER',
  TL006: 'BOUNDARY_BACKWARDS',
  TL007: 'INVALID_EVENT',
  TL008: 'MISSING_TARGET_ROW',
  TL009: 'NOT_APPLICABLE',
  TL010: 'IN_USE',
  TL011: 'BATCH_LOST',
  TL012: 'OUT_OF_STEP',
}

/** Of PostgreSQL, for a text that is no time or length of time, or one that is too long. */
const timeStates = ['22007', '22008', '22009', '22015']
const timeRemedy = "Write a length of time as in '1 hour' or '30 days', and a date as in '2026-01-31'."

/** PostgreSQL's own SQLSTATEs as they come up while something is defined, with what to do about them. */
const definitionStates: Readonly<Record<string, readonly [PgtallyErrorCode, remedy: string]>> = {
  '42P01': ['INVALID_DEFINITION', 'Check its name; a table outside the search path needs its schema: schema.table.'],
  '3F000': ['INVALID_DEFINITION', 'Check the name of the schema that the table is in.'],
  '42602': ['INVALID_DEFINITION', 'Check the name.'],
  '42501': ['PERMISSION_DENIED', 'pgtally is set up by a role that owns the tables (or has TRIGGER and SELECT on the source, SELECT and UPDATE on the target) and may create in the database.'],
  ...Object.fromEntries(timeStates.map((state) => [state, ['INVALID_DEFINITION', timeRemedy]] as const)),
  '55P03': ['LOCK_TIMEOUT', 'Other transactions hold the table; try again when they have ended.'],
}

/** A server in recovery refuses what it refuses in a read-only transaction, and mostly in the same words. */
const readOnlyRemedy = 'On a standby nothing can be written: connect to the primary. If this is the primary, look for default_transaction_read_only of the role and the database.'

interface DatabaseError extends Error {
  /** SQLSTATE */
  code: string
  severity: string
  detail?: string
  hint?: string
}

/** By shape, as the caller may bring another copy of pg. */
export function isDatabaseError(error: unknown): error is DatabaseError {
  return error instanceof Error && 'severity' in error && 'code' in error && typeof error.code === 'string'
}

/** Whether the server or the session, not the statement, is the trouble, so that the same will work once there is a connection again. */
export function isConnectionError(error: unknown): boolean {
  if (isDatabaseError(error)) return /^(08|53300|57P0|25P03)/.test(error.code)
  return error instanceof Error && !(error instanceof PgtallyError)
}

/**
 * Whether the server, or the session, takes no writes. A connection that was made to a primary, which is a standby now, is to be closed then: the next one may lead
 * elsewhere.
 */
export function isReadOnly(error: unknown): boolean {
  return error instanceof PgtallyError ? error.code === 'READ_ONLY' : isDatabaseError(error) && error.code === '25006'
}

/**
 * Whether a transaction was rolled back because of others, and may be done again as it is: a serialization failure, a deadlock,
 * or a complaint of PostgreSQL (seen with 15 and 18) about itself that comes, rarely, to whoever updates a row while a transaction that has
 * both referred to that row by a foreign key and updated it is being rolled back.
 */
export function isTransient(error: unknown): boolean {
  if (!isDatabaseError(error)) return false
  return error.code === '40001' || error.code === '40P01' || (error.code === 'XX000' && error.message.startsWith('new multixact has more than one updating member'))
}

/**
 * The error as the caller of pgtally shall see it: what pgtally's own functions raise becomes a `PgtallyError`, all else
 * stays what it is, so that a caller's retry on 40001 or 40P01 still works.
 */
export function translateError(error: unknown): unknown {
  if (!isDatabaseError(error)) return error
  const code = ownStates[error.code]
  if (code !== undefined) return new PgtallyError(code, sentence(error.message, error.hint), { cause: error })
  // A function was called in a schema that does not exist.
  if (error.code === '3F000') {
    return new PgtallyError('NOT_INSTALLED', `pgtally is not installed here: ${error.message}. Run \`pgtally install\`, or name the right schema.`, { cause: error })
  }
  if (error.code === '25006') return new PgtallyError('READ_ONLY', `${error.message}. ${readOnlyRemedy}`, { cause: error })
  return error
}

/** As `translateError`, for installing and defining, where the server's own errors are about the definition. */
export function translateDefinitionError(error: unknown): unknown {
  const state = isDatabaseError(error) ? definitionStates[error.code] : undefined
  if (state === undefined) return translateError(error)
  return new PgtallyError(state[0], sentence((error as Error).message, state[1]), { cause: error })
}

/** As `translateError`, for reading with arguments that are times. */
export function translateArgumentError(error: unknown): unknown {
  if (!isDatabaseError(error) || !timeStates.includes(error.code)) return translateError(error)
  return new PgtallyError('INVALID_ARGUMENT', sentence(error.message, timeRemedy), { cause: error })
}

/** The error in one line, with the details that the server gave. */
export function describeError(error: unknown): string {
  const translated = translateError(error)
  if (!(translated instanceof Error)) return String(translated)
  const { detail, hint } = isDatabaseError(translated) ? translated : { detail: undefined, hint: undefined }
  return [translated.message, detail, hint].filter((part) => part !== undefined).join('. ')
}

function sentence(message: string, remedy: string | undefined): string {
  return remedy === undefined ? message : `${message}. ${remedy}`
}
