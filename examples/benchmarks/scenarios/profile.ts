import type pg from 'pg'

import type { Bench } from '../bench.ts'
import { newUser, sendingBy, withClients } from '../clients.ts'
import { openContest, settleAndVerify, warmUp } from '../contest.ts'
import type { Contestant } from '../contest.ts'
import { hotPost } from '../distributions.ts'
import { bare } from '../methods/bare.ts'
import { noopTrigger } from '../methods/noop-trigger.ts'
import { tallyStatement, tallyTrigger } from '../methods/tally.ts'
import type { PlanNode } from '../plans.ts'
import { median } from '../results.ts'
import type { Metric, Result } from '../results.ts'
import { profileApplying } from './profile-applying.ts'
import type { Scenario } from './scenario.ts'

const allRounds = 2000
const likesPerRound = 4

const metrics: Metric[] = [
  { key: 'like', title: 'like, us' },
  { key: 'prepared', title: 'prepared, us' },
  { key: 'planning', title: 'planning, us' },
  { key: 'execution', title: 'execution, us' },
  { key: 'triggers', title: 'of that in triggers' },
  { key: 'pages', title: 'pages touched' },
  { key: 'records', title: 'WAL records' },
  { key: 'bytes', title: 'WAL bytes' },
]

/** Where the time goes, by what the server says of its plans. */
export const profile: Scenario = {
  name: 'profile',
  description: 'where the time of a like goes, and that of applying',
  run: async (bench) => [await profileLikes(bench), await profileApplying(bench)],
}

async function profileLikes(bench: Bench): Promise<Result> {
  const rounds = allRounds / bench.divisor
  await using contest = await openContest(bench, [bare, noopTrigger, tallyTrigger, tallyStatement], { distribution: hotPost, foreignKey: false })
  await warmUp(bench, contest, hotPost)
  const measured = contest.contestants.map((contestant) => ({ contestant, figures: [] as Record<string, number>[] }))
  await withClients(
    bench,
    async ([client]) => {
      await client?.query(`create function pg_temp.run(statement text, post bigint, member bigint) returns void language plpgsql as 'begin execute statement using post, member; end'`)
      // In turn, so that a machine that changes its speed does so for all.
      for (let round = 0; round < rounds; round++) {
        bench.signal.throwIfAborted()
        for (const { contestant, figures } of measured) if (client !== undefined) figures.push(await profileLike(client, contestant))
      }
    },
    1,
  )
  for (const { contestant } of measured) await settleAndVerify(bench, contestant, rounds * likesPerRound)
  return {
    id: 'profile-likes',
    title: `Where the time of a like goes, ${hotPost.name}, one connection, no foreign key; medians of ${rounds.toLocaleString('en-US')}`,
    metrics,
    rows: measured.map(({ contestant: { name }, figures }) => ({ name, samples: Object.fromEntries(metrics.map(({ key }) => [key, [median(figures.map((figure) => figure[key] ?? Number.NaN))]])) })),
    notes: [
      'like and prepared: one of its own transaction, from the call to its end. planning and execution: of the unprepared one, by EXPLAIN ANALYZE.',
      'Pages and WAL are with those of triggers, and without the commit; a page is counted each time it is touched.',
    ],
  }
}

interface Explanation {
  Plan: PlanNode
  'Planning Time': number
  'Execution Time': number
  Triggers: { Time: number }[]
}

/** The same like four times, each looked at in another way. */
async function profileLike(client: pg.Client, { like, tables }: Contestant): Promise<Record<string, number>> {
  const timed = async (sender: pg.Client) => {
    const began = performance.now()
    await like(sender, hotPost.next(), newUser())
    return (performance.now() - began) * 1000
  }
  const explained = async (explain: (text: string, values: unknown[]) => [text: string, values: unknown[]]): Promise<Explanation> => {
    let explanation: Explanation | undefined
    const sender = sendingBy(async (...statement) => {
      const [text, values] = explain(...statement)
      const { rows } = await client.query<{ 'QUERY PLAN': [Explanation] }>(`explain (analyze, buffers, wal, format json) ${text}`, values)
      explanation = rows[0]?.['QUERY PLAN'][0]
    })
    await like(sender, hotPost.next(), newUser())
    if (explanation === undefined) throw new Error('EXPLAIN gave nothing')
    return explanation
  }
  const statement = await explained((text, values) => [text, values])
  // AFTER triggers are no part of that plan, but of the plan of what calls the statement.
  const { Plan: whole } = await explained((text, values) => ['select pg_temp.run($1, $2, $3)', [text, ...values]])
  return {
    like: await timed(client),
    prepared: await timed(sendingBy((text, values) => client.query({ name: tables.schema, text, values }))),
    planning: statement['Planning Time'] * 1000,
    execution: statement['Execution Time'] * 1000,
    triggers: statement.Triggers.reduce((sum, { Time }) => sum + Time, 0) * 1000,
    pages: whole['Shared Hit Blocks'] + whole['Shared Read Blocks'],
    records: whole['WAL Records'],
    bytes: whole['WAL Bytes'],
  }
}
