import { translateError } from './errors.ts'

/** `pg.Pool`, `pg.PoolClient`, `pg.Client`, or anything with their `query`. */
export interface PgExecutor {
  query(text: string, values?: unknown[]): Promise<{ rows: unknown[] }>
}

/** `Kysely` or its `Transaction`. */
export interface KyselyExecutor {
  /** Takes a `CompiledQuery`, a type that pgtally does not import: Kysely is optional. */
  executeQuery(query: never): Promise<{ rows: unknown[] }>
}

/** Where a statement runs: inside the caller's transaction, or on its own where this is a pool. */
export type Executor = PgExecutor | KyselyExecutor

export type Row = Record<string, unknown>

/**
 * Runs one parameterized statement. Result columns have names of one word, which no result-mapping plugin of Kysely changes.
 */
export async function query<R extends Row>(executor: Executor, text: string, values: readonly unknown[] = []): Promise<R[]> {
  try {
    if ('executeQuery' in executor) {
      const rawNode = { kind: 'RawNode', sqlFragments: [text], parameters: [] }
      const compiled = { sql: text, parameters: values, query: rawNode, queryId: { queryId: 'pgtally' } }
      const result = await executor.executeQuery(compiled as never)
      return result.rows as R[]
    }
    const result = await executor.query(text, [...values])
    return result.rows as R[]
  } catch (error) {
    throw translateError(error)
  }
}
