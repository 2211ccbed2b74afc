import type { Pool } from 'pg'

import { PgtallyError, isDatabaseError } from '../errors.ts'
import { query } from '../executor.ts'
import { isKeyType } from './values.ts'

/** The table of a writer, as the application names it. */
export interface TableNames {
  /** As in SQL: `likes`, `app.likes`, `"Likes"`. */
  table: string
  key: string
  member: string
  columns: readonly string[]
}

export interface Column {
  name: string
  quoted: string
  /** With its schema, so that it means the same in every session; without a length, to which a cast would cut the value. */
  type: string
  /** The type itself, or what the domain is of. */
  base: string
}

/** The table of a writer, looked up. */
export interface MembershipTable {
  /** Quoted and with its schema. */
  name: string
  key: Column
  member: Column
  columns: readonly Column[]
  /** Whether `SELECT … FOR UPDATE` finds whatever `DELETE` does. */
  lockable: boolean
}

interface FoundTable {
  name: string
  kind: string
  persistence: string
  lockable: string
  unique: string
  columns: string
}

interface FoundColumn extends Omit<Column, 'type'> {
  type: string | null
  computed: boolean
  deterministic: boolean
}

/**
 * Looks up what the statement needs to know, and whether a writer can do its work there.
 *
 * @throws PgtallyError INVALID_ARGUMENT with what is wrong with the table; errors of the connection as they are
 */
export async function lookUpTable(pool: Pool, names: TableNames): Promise<MembershipTable> {
  const { table, key, member } = names
  const found = await findTable(pool, names)
  if (found === undefined) throw refusal(`There is no table "${table}". Check its name; a table outside the search path needs its schema: schema.table.`)
  if (!['r', 'p'].includes(found.kind)) throw refusal(`"${table}" is a view, or something else that is no table. Name the table that the rows are in.`)
  if (found.persistence === 't') throw refusal(`"${table}" is a temporary table, which other connections do not see. Use a permanent one.`)
  const [keyColumn, memberColumn, ...columns] = (JSON.parse(found.columns) as FoundColumn[]).map(({ name, quoted, type, base, computed, deterministic }, index) => {
    if (type === null) throw refusal(`The table "${table}" has no column "${name}".`)
    if (computed) throw refusal(`The server itself computes the column "${name}" of "${table}". Leave it out.`)
    if (index < 2 && !isKeyType(base)) throw refusal(`The column "${name}" of "${table}" is of type ${base}. A writer's key and member are smallint, integer, bigint, uuid, text or varchar.`)
    if (index < 2 && !deterministic) throw refusal(`The column "${name}" of "${table}" has a collation that takes different texts for the same, so a writer cannot tell pairs apart. Use a deterministic collation.`)
    return { name, quoted, type, base }
  })
  if (found.unique !== 'true' || keyColumn === undefined || memberColumn === undefined) {
    throw refusal(`The table "${table}" has no unique index on (${key}, ${member}) alone that holds for all rows at once, so a row could be there twice. Add one: ALTER TABLE ${table} ADD UNIQUE (${key}, ${member}).`)
  }
  return { name: found.name, key: keyColumn, member: memberColumn, columns, lockable: found.lockable === 'true' }
}

async function findTable(pool: Pool, { table, key, member, columns }: TableNames): Promise<FoundTable | undefined> {
  try {
    // All as text, which no type parser of the caller's changes.
    const [found] = await query<FoundTable & Record<string, unknown>>(
      pool,
      `select format('%I.%I', n.nspname, c.relname) as name, c.relkind::text as kind, c.relpersistence::text as persistence,
        -- FOR UPDATE asks for a right that DELETE does not need, and goes by policies that DELETE does not go by.
        (has_any_column_privilege(c.oid, 'update') and not row_security_active(c.oid))::text as lockable,
        exists (
          select from pg_catalog.pg_index i
          where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null and i.indnkeyatts = 2
            and (select array_agg(a.attname::text order by a.attname::text) from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum = any (i.indkey[0:1]))
              = (select array_agg(name order by name) from unnest(array[$2::text, $3::text]) name)
        )::text as unique,
        (select json_agg(json_build_object(
            'name', w.name, 'quoted', quote_ident(w.name), 'type', quote_ident(tn.nspname) || '.' || quote_ident(t.typname),
            'base', (
              with recursive base(oid) as (
                select t.oid union all select d.typbasetype from base join pg_catalog.pg_type d using (oid) where d.typtype = 'd'
              )
              select b.oid::regtype::text from base join pg_catalog.pg_type b using (oid) where b.typtype <> 'd'),
            'computed', a.attgenerated <> '' or a.attidentity = 'a',
            'deterministic', coalesce(l.collisdeterministic, true)
          ) order by w.position)
          from unnest(array[$2::text, $3::text] || $4::text[]) with ordinality w(name, position)
          left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = w.name and a.attnum > 0 and not a.attisdropped
          left join pg_catalog.pg_type t on t.oid = a.atttypid
          left join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
          left join pg_catalog.pg_collation l on l.oid = a.attcollation
        )::text as columns
      from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where c.oid = to_regclass($1::text)`,
      [table, key, member, columns],
    )
    return found
  } catch (error) {
    // A name that is none, or a schema that may not be used.
    if (!isDatabaseError(error) || !error.code.startsWith('42')) throw error
    throw refusal(`The table "${table}" cannot be used: ${error.message}. Name it as in SQL: likes, app.likes, "Likes".`, error)
  }
}

function refusal(message: string, cause?: unknown): PgtallyError {
  return new PgtallyError('INVALID_ARGUMENT', `writer(): ${message}`, cause === undefined ? undefined : { cause })
}
