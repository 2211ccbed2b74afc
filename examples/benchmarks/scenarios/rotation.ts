import { setTimeout as sleep } from 'node:timers/promises'

import { atFullSpeed, connections } from '../clients.ts'
import type { Bench } from '../bench.ts'
import { inTurn, openContest, verify } from '../contest.ts'
import { halfHot } from '../distributions.ts'
import { tallyRotating } from '../methods/tally.ts'
import type { Lines, Metric } from '../results.ts'
import { singleLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

/** An hour of the default, 5 minutes. */
const periods = 12
const looksPerPeriod = 10

const metrics: Metric[] = [
  { key: 'rate', title: 'likes/s' },
  { key: 'written', title: 'MB of events written', digits: 1 },
  { key: 'early', title: 'MB there at most, periods 1 to 6', digits: 1 },
  { key: 'late', title: '7 to 12', digits: 1 },
]

/** As many rotations as there are in an hour, at a shorter period, under load: the event tables stay as large as some periods' events. */
export const rotation: Scenario = {
  name: 'rotation',
  description: `space of the event tables over ${periods} rotation periods at full speed`,
  async run(bench) {
    const { rotationSeconds } = bench
    await using contest = await openContest(bench, [tallyRotating(rotationSeconds * 1000)], { distribution: halfHot, foreignKey: true })
    const chart: Lines = { id: 'rotation-size', title: `Size of the event tables over ${periods} rotation periods of ${rotationSeconds} s at full speed`, xTitle: 's', yTitle: 'MB', lines: [] }
    const { rows, failed } = await inTurn({ ...bench, repetitions: 1 }, 'rotation', contest.contestants, metrics, async (contestant) => {
      await using worker = await contestant.consume?.()
      const [{ done, seconds }, sizes] = await Promise.all([
        atFullSpeed(bench, singleLikes(contestant, halfHot).act, periods * rotationSeconds),
        watchSizes(bench, contestant.tables.schema, rotationSeconds),
      ])
      await verify(bench, contestant, done, worker)
      chart.lines.push({ name: 'there', points: sizes.map(({ at, there }) => [at, there]) }, { name: 'written', points: sizes.map(({ at, written }) => [at, written]) })
      const most = (from: number, to: number) => Math.max(...sizes.filter(({ at }) => at >= from * rotationSeconds && at < to * rotationSeconds).map(({ there }) => there))
      return { rate: done / seconds, written: sizes.at(-1)?.written ?? 0, early: most(0, periods / 2), late: most(periods / 2, Infinity) }
    })
    const title = `Space of the event tables, ${periods} rotation periods of ${rotationSeconds} s (an hour has as many by default), ${halfHot.name}, ${connections} connections at full speed`
    return [{ id: 'rotation', title, metrics, rows, notRun: contest.notRun, failed, charts: [chart] }]
  },
}

interface Size {
  /** Seconds. */
  at: number
  /** MB of all slots with their indexes. */
  there: number
  /** MB since the beginning: what the slots grew by from look to look. */
  written: number
}

async function watchSizes({ pool, signal }: Bench, queue: string, rotationSeconds: number): Promise<Size[]> {
  const sizes: Size[] = []
  const began = performance.now()
  let before: number[] = []
  let written = 0
  for (let look = 1; look <= periods * looksPerPeriod; look++) {
    await sleep(began + (look * rotationSeconds * 1000) / looksPerPeriod - performance.now(), undefined, { signal })
    const { rows } = await pool.query<{ bytes: string[] }>(`select slot_bytes as bytes from pgtally.queue_status() where name = $1`, [queue])
    const now = (rows[0]?.bytes ?? []).map((bytes) => Number(bytes) / 2 ** 20)
    // A slot that was emptied has begun at nothing again.
    written += now.reduce((sum, size, slot) => sum + (size >= (before[slot] ?? 0) ? size - (before[slot] ?? 0) : size), 0)
    before = now
    sizes.push({ at: (performance.now() - began) / 1000, there: now.reduce((sum, size) => sum + size, 0), written })
  }
  return sizes
}
