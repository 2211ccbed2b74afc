import { Command, Option } from 'commander'

import { wholeNumber } from '../../src/cli/command.ts'
import { benchApply } from './apply.ts'
import { benchAudit } from './audit.ts'
import { benchBackfill } from './backfill.ts'
import { withBench } from './bench.ts'
import { benchFresh } from './fresh.ts'
import { benchIdle } from './idle.ts'
import { benchLag } from './lag.ts'
import { benchWrite } from './write.ts'

// The idle one first: after the others, autovacuum has work, and takes transaction ids.
const benchmarks = {
  idle: benchIdle,
  lag: benchLag,
  write: benchWrite,
  apply: benchApply,
  fresh: benchFresh,
  backfill: benchBackfill,
  audit: benchAudit,
}

interface Options {
  databaseUrl?: string
  only?: keyof typeof benchmarks
  seconds: number
  repetitions: number
}

await new Command('bench')
  .description('Measures pgtally against what the server can do without it.')
  .option('--database-url <url>', 'a server to create a database on, as superuser (default: an embedded one)')
  .addOption(new Option('--only <name>', 'run one benchmark').choices(Object.keys(benchmarks)))
  .option('--seconds <n>', 'how long each rate is measured', wholeNumber(1), 5)
  .option('--repetitions <n>', 'how often, in turn with the others', wholeNumber(1), 3)
  .action(async ({ databaseUrl, only, seconds, repetitions }: Options) => {
    await withBench(databaseUrl, { seconds, repetitions }, async (bench) => {
      for (const run of only === undefined ? Object.values(benchmarks) : [benchmarks[only]]) await run(bench)
    })
  })
  .parseAsync()
