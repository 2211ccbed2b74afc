import { bare } from './bare.ts'
import { graphileWorker } from './graphile-worker.ts'
import type { Method } from './method.ts'
import { noopTrigger } from './noop-trigger.ts'
import { pgBoss, pgBossSend } from './pg-boss.ts'
import { pgq, pgque } from './pgq.ts'
import { slotted } from './slotted.ts'
import { updateInStatement, updateInTransaction } from './synchronous.ts'
import { tallyOwnTable, tallyStatement, tallyTrigger } from './tally.ts'

/** Ratios are to the first. */
export const allMethods: readonly Method[] = [bare, noopTrigger, tallyTrigger, tallyStatement, pgq, pgque, slotted, updateInStatement, updateInTransaction, pgBoss, pgBossSend, graphileWorker]

/** Those that store counts, each in its fastest form. */
export const countingMethods: readonly Method[] = [tallyTrigger, pgq, pgque, slotted, updateInStatement, pgBoss, graphileWorker]

/** Those of them where something else than the like adds up. */
export const laterMethods: readonly Method[] = [tallyTrigger, pgq, pgque, pgBoss, graphileWorker]

/** Those that can be asked to go on for minutes under a held transaction. */
export const heldMethods: readonly Method[] = [tallyTrigger, updateInStatement, pgq]

/** Where the checks of a foreign key look at the counted row, or at another one. */
export const heldMethodsWithKey: readonly Method[] = [tallyTrigger, tallyOwnTable]
