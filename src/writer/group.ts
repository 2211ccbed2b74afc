import type { Pool } from 'pg'

import { isReadOnly, isTransient, PgtallyError } from '../errors.ts'
import { connect, release } from '../transaction.ts'
import { isAboutTable, isLost, isRowFault } from './faults.ts'
import { groupStatement } from './statement.ts'
import type { GroupResult, Row } from './statement.ts'
import type { MembershipTable } from './table.ts'

/** A call whose promise is to be settled. */
export interface GroupCall extends Row {
  removes: boolean
  resolve: (changed: boolean) => void
  reject: (error: unknown) => void
}

const attempts = 10

/**
 * Writes the rows of the calls, which are sorted, in one statement, and settles each call. If a row is at fault the halves are written by themselves, and so
 * on: with one such row in 2 000, in some twenty statements.
 *
 * @returns false when the table should be looked up again; never throws
 */
export async function writeGroup(pool: Pool, table: MembershipTable, group: readonly GroupCall[]): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    try {
      await execute(pool, table, group)
      return true
    } catch (error) {
      if (isTransient(error) && attempt < attempts) continue
      if (isRowFault(error) && group.length > 1) {
        const half = group.length >> 1
        const first = await writeGroup(pool, table, group.slice(0, half))
        const second = await writeGroup(pool, table, group.slice(half))
        return first && second
      }
      for (const { reject } of group) reject(error)
      return !isAboutTable(error)
    }
  }
}

async function execute(pool: Pool, table: MembershipTable, group: readonly GroupCall[]): Promise<void> {
  const added = group.filter(({ removes }) => !removes)
  const removed = group.filter(({ removes }) => removes)
  const { text, values } = groupStatement(table, added, removed)
  // By itself, so that an error of it is known for one before which nothing was sent.
  const client = await connect(pool)
  let broken = false
  try {
    const { rows } = await client.query<GroupResult>(text, values)
    resolveEach(added, rows[0]?.added)
    resolveEach(removed, rows[0]?.removed)
  } catch (error) {
    const lost = isLost(error)
    broken = lost || isReadOnly(error)
    if (!lost) throw error
    throw new PgtallyError(
      'OUTCOME_UNKNOWN',
      `The connection was lost while rows were written to ${table.name}: they were written, or not, or still will be. Call again, which leaves as it is what is there already.`,
      { cause: error },
    )
  } finally {
    // Also where the client only did not wait any longer and the statement is still running.
    release(client, broken)
  }
}

function resolveEach(calls: readonly GroupCall[], changed = '[]'): void {
  const positions = JSON.parse(changed) as true | number[]
  const set = positions === true ? undefined : new Set(positions)
  for (const [index, { resolve }] of calls.entries()) resolve(set === undefined || set.has(index + 1))
}
