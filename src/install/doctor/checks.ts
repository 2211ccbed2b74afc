import { autovacuum } from './checks/autovacuum.ts'
import { buckets } from './checks/buckets.ts'
import { carried } from './checks/carried.ts'
import { clock } from './checks/clock.ts'
import { cluster } from './checks/cluster.ts'
import { counters } from './checks/counters.ts'
import { deadLetters } from './checks/dead-letters.ts'
import { lockTable } from './checks/lock-table.ts'
import { preparedTransactions } from './checks/prepared-transactions.ts'
import { progress } from './checks/progress.ts'
import { replicationRole } from './checks/replication-role.ts'
import { replicationSlots } from './checks/replication-slots.ts'
import { role } from './checks/role.ts'
import { schemaVersion } from './checks/schema-version.ts'
import { serverVersion } from './checks/server-version.ts'
import { sessionSettings } from './checks/session-settings.ts'
import { slots } from './checks/slots.ts'
import { sourceIndex } from './checks/source-index.ts'
import { targetHot } from './checks/target-hot.ts'
import { targetIndex } from './checks/target-index.ts'
import { targetOverflow } from './checks/target-overflow.ts'
import { transactions } from './checks/transactions.ts'
import { triggers } from './checks/triggers.ts'
import { wraparound } from './checks/wraparound.ts'

/** All that the doctor looks at. Findings of one level come in this order: first what makes counts wrong or stand still. */
export const checks = [
  schemaVersion,
  serverVersion,
  cluster,
  progress,
  counters,
  triggers,
  replicationRole,
  targetOverflow,
  wraparound,
  slots,
  buckets,
  deadLetters,
  carried,
  transactions,
  preparedTransactions,
  replicationSlots,
  targetIndex,
  targetHot,
  autovacuum,
  sourceIndex,
  clock,
  lockTable,
  sessionSettings,
  role,
] as const
