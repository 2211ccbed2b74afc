import { atFullSpeed, newUser } from '../clients.ts'
import type { Act } from '../clients.ts'
import type { Bench } from '../bench.ts'
import { inTurn, openContest, reset, settleAndVerify, verify, warmUp } from '../contest.ts'
import type { Contestant, Ground } from '../contest.ts'
import type { Distribution } from '../distributions.ts'
import { tallyTrigger } from '../methods/tally.ts'
import type { Method } from '../methods/method.ts'
import type { Metric, Result } from '../results.ts'

export interface Comparison extends Ground {
  id: string
  title: string
  methods: readonly Method[]
  /** Default: single likes. */
  acts?: (contestant: Contestant, distribution: Distribution) => Acts
  /** Also with what adds up as a process beside the likes, on the same cores. */
  alsoConsuming?: Method
}

export interface Acts {
  act: Act
  /** How many rows there are after so many acts; default: as many. */
  rows?: () => number
}

/** How fast likes come in, method by method. */
export async function compareLikes(bench: Bench, { id, title, methods, acts = singleLikes, alsoConsuming, ...ground }: Comparison): Promise<Result> {
  await using contest = await openContest(bench, methods, ground)
  await warmUp(bench, contest, ground.distribution)
  const contestants = contest.contestants.flatMap((contestant) => [
    { ...contestant, consuming: false },
    ...(contestant.name === alsoConsuming?.name ? [{ ...contestant, name: `${contestant.name}, with its worker on the same cores`, consuming: true }] : []),
  ])
  const metrics: Metric[] = [{ key: 'rate', title: 'likes/s', ratio: true }]
  const { rows, failed } = await inTurn(bench, id, contestants, metrics, async (contestant) => {
    await reset(bench, contestant)
    const { act, rows: rowsOf } = acts(contestant, ground.distribution)
    await using consumer = contestant.consuming ? await contestant.consume?.() : undefined
    const { done, seconds } = await atFullSpeed(bench, act)
    const likes = rowsOf?.() ?? done
    if (consumer === undefined) await settleAndVerify(bench, contestant, likes)
    else await verify(bench, contestant, likes, consumer)
    return { rate: done / seconds }
  })
  return { id, title, metrics, rows, own: tallyTrigger.name, notRun: contest.notRun, failed, bars: true }
}

export function singleLikes({ like }: Contestant, distribution: Distribution): Acts {
  return {
    async act(client) {
      await like(client, distribution.next(), newUser())
      return 1
    },
  }
}
