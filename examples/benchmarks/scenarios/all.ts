import { apply } from './apply.ts'
import { audit } from './audit.ts'
import { backfill } from './backfill.ts'
import { bulk } from './bulk.ts'
import { endToEnd } from './end-to-end.ts'
import { fresh } from './fresh.ts'
import { held } from './held.ts'
import { hot } from './hot.ts'
import { idle } from './idle.ts'
import { lag } from './lag.ts'
import { mix } from './mix.ts'
import { readCounts } from './reads.ts'
import { rotation } from './rotation.ts'
import type { Scenario } from './scenario.ts'
import { evenly, zipfian } from './spread.ts'
import { writer } from './writer.ts'

// The idle one first: after the others, autovacuum has work, and takes transaction ids.
export const scenarios: readonly Scenario[] = [idle, hot, zipfian, evenly, bulk, mix, writer, apply, endToEnd, lag, held, rotation, readCounts, fresh, backfill, audit]
