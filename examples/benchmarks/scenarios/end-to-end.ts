import { atFullSpeed, connections } from '../clients.ts'
import { inTurn, openContest, reset, verify, warmUp } from '../contest.ts'
import { halfHot } from '../distributions.ts'
import { bare } from '../methods/bare.ts'
import { countingMethods } from '../methods/all.ts'
import { tallyTrigger } from '../methods/tally.ts'
import type { Metric } from '../results.ts'
import { singleLikes } from './compare-likes.ts'
import type { Scenario } from './scenario.ts'

const metrics: Metric[] = [
  { key: 'counted', title: 'likes/s until all are counted', ratio: true },
  { key: 'sent', title: 'likes/s while they are sent' },
]

/** From the first like sent to the moment when the stored counts include all of them, with what adds up as a process beside. */
export const endToEnd: Scenario = {
  name: 'end-to-end',
  description: 'likes until all are in the stored counts, with the worker or consumer beside',
  async run(bench) {
    await using contest = await openContest(bench, [bare, ...countingMethods], { distribution: halfHot, foreignKey: true })
    await warmUp(bench, contest, halfHot)
    const { rows, failed } = await inTurn(bench, 'end-to-end', contest.contestants, metrics, async (contestant) => {
      await reset(bench, contestant)
      await using consumer = await contestant.consume?.()
      const { done, seconds } = await atFullSpeed(bench, singleLikes(contestant, halfHot).act)
      const restMs = await verify(bench, contestant, done, consumer)
      return { counted: done / (seconds + restMs / 1000), sent: done / seconds }
    })
    const title = `Likes per second from the first sent to the last counted, ${halfHot.name}, ${connections} connections, with a foreign key`
    return [{ id: 'end-to-end', title, metrics, rows, own: tallyTrigger.name, notRun: contest.notRun, failed, bars: true }]
  },
}
