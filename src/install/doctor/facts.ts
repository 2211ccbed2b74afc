import { readdir } from 'node:fs/promises'

import type { PoolClient } from 'pg'

/** What everything else depends on. */
export interface Facts {
  /** As `server_version_num`. */
  serverVersion: number
  /** As the server calls its version. */
  serverVersionName: string
  database: string
  role: string
  /** As it stands in SQL. */
  quotedRole: string
  /** Whether the role sees what the sessions of others do. */
  seesSessions: boolean
  /** A standby: it can be read only. */
  standby: boolean
  schemaExists: boolean
  /** The schema's version; undefined where it is not pgtally's or cannot be read. */
  schemaVersion: number | undefined
  /** That of this pgtally. */
  expectedVersion: number
  /** Whether it is pgtally's, as far as the role may see. */
  schemaIsOwn: boolean
  /** Whether the role may use the schema at all. */
  mayUseSchema: boolean
  mayReadVersion: boolean
}

export async function readFacts(client: Pick<PoolClient, 'query'>, schema: string): Promise<Facts> {
  const { rows } = await client.query<{ facts: string }>(
    `select json_build_object(
      'serverVersion', current_setting('server_version_num')::int, 'serverVersionName', current_setting('server_version'),
      'database', current_database(), 'role', current_user, 'quotedRole', quote_ident(current_user), 'seesSessions', pg_has_role(current_user, 'pg_read_all_stats', 'usage'),
      'standby', pg_is_in_recovery(),
      'schemaExists', n.oid is not null, 'schemaIsOwn', i.oid is not null,
      'mayUseSchema', coalesce(has_schema_privilege(n.oid, 'usage'), false), 'mayReadVersion', coalesce(has_table_privilege(i.oid, 'select'), false))::text as facts
    from (select) one
    left join pg_catalog.pg_namespace n on n.nspname = $1::text
    left join pg_catalog.pg_class i on i.relnamespace = n.oid and i.relname = 'installation'`,
    [schema],
  )
  const facts = JSON.parse(rows[0]?.facts ?? '') as Omit<Facts, 'schemaVersion' | 'expectedVersion'>
  const { length: expectedVersion } = await readdir(new URL('../../../sql/migrations/', import.meta.url))
  let schemaVersion: number | undefined
  if (facts.schemaIsOwn && facts.mayUseSchema && facts.mayReadVersion) {
    const installation = await client.query<{ version: string }>(`select schema_version::text as version from ${schema}.installation`)
    schemaVersion = installation.rows[0] && Number(installation.rows[0].version)
  }
  return { ...facts, schemaVersion, expectedVersion }
}
