import type { Key } from '../counters/definition.ts'
import type { Column, MembershipTable } from './table.ts'
import { arrayType } from './values.ts'

/** A row to add or remove, as it goes into the statement. */
export interface Row {
  key: Key
  member: Key
  /** Of the other columns; none where the row is to be removed. */
  values: readonly unknown[]
}

export interface GroupStatement {
  text: string
  values: unknown[]
}

/** Which of the rows were added, and which were removed, as JSON: their positions in the list, counted from 1, or `true` for all. */
export interface GroupResult extends Record<string, unknown> {
  added?: string
  removed?: string
}

/**
 * One statement that adds and removes rows. No pair may be in it twice, and both lists are sorted by key and member, in the same way in every process.
 *
 * Writers then cannot come into a deadlock among themselves. A statement first inserts and then deletes, as the parts depend on each other in that order, and each
 * part takes its rows in the order given. To insert waits for a transaction that has inserted or deleted the same pair; to delete waits only for one that
 * deletes it as well, as what is inserted and not committed cannot be seen. So a statement that inserts waits for one that is further on among the
 * pairs, or deletes already; one that deletes waits for one that is further on in deleting. All waits lead forward, and no circle can close.
 *
 * Waits of another kind may close one: those of triggers, foreign keys and other unique indexes, and of deletes where rows cannot be locked, as their order is then the plan's.
 * The server breaks it, and the writer tries again.
 */
export function groupStatement(table: MembershipTable, added: readonly Row[], removed: readonly Row[]): GroupStatement {
  const { name, key, member, columns, lockable } = table
  const [k, m] = [key.quoted, member.quoted]
  const values: unknown[] = []
  const parameter = (value: unknown, type: string) => `$${values.push(value)}::${type}[]`
  const pairs = (rows: readonly Row[]) => [
    parameter(keyArray(rows.map((row) => row.key), key), arrayType(key.base)),
    parameter(keyArray(rows.map((row) => row.member), member), arrayType(member.base)),
  ]
  const parts: string[] = []
  const results: string[] = []
  if (added.length > 0) {
    const given = pairs(added)
    // As text, since an array of arrays would be one array of all that is in them.
    const others = columns.map((_, index) => parameter(added.map((row) => row.values[index]), 'text'))
    const names = [key, member, ...columns].map(({ quoted }) => quoted)
    parts.push(
      `added as (
        insert into ${name} (${names.join(', ')})
        select ${['k', 'm', ...columns.map(({ type }, index) => `c${index}::${type}`)].join(', ')}
        from unnest(${[...given, ...others].join(', ')}) g(${['k', 'm', ...columns.map((_, index) => `c${index}`)].join(', ')})
        on conflict (${k}, ${m}) do nothing
        returning ${k}, ${m})`,
    )
    // Nearly always all are new, and then there is nothing to look for.
    results.push(
      `case when (select count(*) from added) = cardinality(${given[0]}) then 'true' else (
        select coalesce(json_agg(g.position), '[]')::text from unnest(${given.join(', ')}) with ordinality g(k, m, position)
        join added a on a.${k} = g.k and a.${m} = g.m) end as added`,
    )
  }
  if (removed.length > 0) {
    const given = pairs(removed)
    parts.push(
      `going as materialized (
        select g.k, g.m, g.position from unnest(${given.join(', ')}) with ordinality g(k, m, position)
        ${lockable ? `join ${name} t on t.${k} = g.k and t.${m} = g.m` : ''}
        ${added.length > 0 ? 'where (select count(*) from added) >= 0' : ''}
        order by g.position ${lockable ? 'for update of t' : ''})`,
      // By the pair once more: a row that was updated meanwhile is not found by where it was.
      `removed as (delete from ${name} t using going g where t.${k} = g.k and t.${m} = g.m returning g.position)`,
    )
    results.push(`(select coalesce(json_agg(position), '[]')::text from removed) as removed`)
  }
  return { text: `with ${parts.join(', ')} select ${results.join(', ')}`, values }
}

/** Numbers and uuids need no quoting, which pg would spend more time on than on all the rest. */
function keyArray(keys: readonly Key[], { base }: Column): unknown {
  return arrayType(base) === 'text' ? keys : `{${keys.join(',')}}`
}
