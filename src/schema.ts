import { PgtallyError } from './errors.ts'

export const defaultSchema = 'pgtally'

/** A name that needs no quoting, so it can stand in SQL text as it is. */
export function checkSchemaName(schema: string): string {
  if (!/^(?!pg_)[a-z_][a-z0-9_]{0,39}$/.test(schema)) {
    throw new PgtallyError(
      'INVALID_ARGUMENT',
      `"${schema}" cannot be the name of pgtally's schema. Use up to 40 lower-case letters, digits and underscores, not beginning with a digit or pg_.`,
    )
  }
  return schema
}
