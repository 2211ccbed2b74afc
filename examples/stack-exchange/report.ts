import logUpdate from 'log-update'

import type { Progress, ReplayResult } from './replay.ts'
import type { PostComparison } from './tables.ts'

const plainIntervalMs = 5000

const count = (value: number) => value.toLocaleString('en-US')
const decimal = (value: number) => value.toLocaleString('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 })
const percent = (share: number) => `${Math.floor(share * 100)} %`

/** Shows how far the replay is: in place on a terminal, otherwise a line for each phase and every five seconds. */
export class ProgressDisplay {
  readonly #terminal = process.stdout.isTTY
  #lastPhase: Progress['phase'] | undefined
  #lastAt = 0

  show(progress: Readonly<Progress>): void {
    const text = describeProgress(progress)
    if (this.#terminal) {
      logUpdate(text)
      return
    }
    if (progress.phase === this.#lastPhase && performance.now() - this.#lastAt < plainIntervalMs) return
    this.#lastPhase = progress.phase
    this.#lastAt = performance.now()
    process.stdout.write(`${text}\n`)
  }

  /** Before anything else is printed. */
  end(): void {
    if (this.#terminal) logUpdate.clear()
  }
}

function describeProgress({ phase, shareRead, posts, votes, votesPerSecond, pendingEvents, lagSeconds }: Readonly<Progress>): string {
  switch (phase) {
    case 'loading posts':
      return `Loading posts: ${count(posts)} (${percent(shareRead)} of Posts.xml)`
    case 'casting votes':
      return `Casting votes: ${count(votes)} (${percent(shareRead)} of Votes.xml), ${count(Math.round(votesPerSecond))}/s, ${count(pendingEvents)} events pending, lag ${decimal(lagSeconds)} s`
    case 'catching up':
      return `Catching up: ${count(pendingEvents)} events pending`
    case 'comparing':
      return 'Comparing the counters with the votes and with the dump'
  }
}

export function describeResult(result: ReplayResult): string {
  return [describeFigures(result), ...describeVerdict(result)].join('\n\n')
}

function describeFigures(result: ReplayResult): string {
  const { expected } = result
  const figures: [name: string, value: string][] = [
    ['posts', count(result.posts)],
    ['votes', count(expected.votes)],
    ['withdrawn and cast again', count(expected.withdrawn)],
    ['transactions', count(expected.transactions)],
    ['votes cast per second', count(Math.round((expected.votes + expected.withdrawn) / result.castSeconds))],
    ['events applied', `${count(result.appliedEvents)} in ${count(result.batches)} batches`],
    ['greatest lag seen', `${decimal(result.greatestLagSeconds)} s`],
    ['caught up after', `${decimal(result.catchUpSeconds)} s`],
    ['dropped', `${count(result.votesForMissingPosts)} votes for ${count(result.missingPosts)} posts that are not in Posts.xml (${count(result.droppedEvents)} events)`],
    ['time buckets compared', count(bucketsOf(result))],
    ...result.buckets.map(({ counter, width, compared }): [string, string] => [`  ${counter}, ${width}`, count(compared)]),
    ['peak memory', `${count(Math.round(process.resourceUsage().maxRSS / 1024))} MB`],
  ]
  const width = Math.max(...figures.map(([name]) => name.length))
  return figures.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n')
}

const bucketsOf = ({ buckets }: ReplayResult) => buckets.reduce((sum, { compared }) => sum + compared, 0)

function describeVerdict(result: ReplayResult): string[] {
  const { problems, posts, scores, matching, contradictions, examples } = result
  const exact = `Exact: all ${count(posts)} counters equal the votes cast, and all ${count(bucketsOf(result))} sums by hour, day and month, of posts and of tags, equal those of Votes.xml.`
  const paragraphs = [problems.length === 0 ? exact : ['NOT EXACT:', ...problems].join('\n  ')]
  paragraphs.push(`${matching === posts ? 'All' : `${count(matching)} of`} ${count(posts)} counters match the Score in the dump.`)
  if (scores < posts) paragraphs.push(`${count(posts - scores)} posts have no Score in the dump to match.`)
  if (contradictions > 0) {
    paragraphs.push(
      `The dump contradicts itself for ${count(contradictions)} ${contradictions === 1 ? 'post' : 'posts'}: the votes in Votes.xml do not add up to the Score in Posts.xml.` +
        (problems.length === 0 ? ' The counters say what the votes do.' : ''),
    )
  }
  if (examples.length > 0) paragraphs.push(describeExamples(examples))
  return paragraphs
}

function describeExamples(examples: readonly PostComparison[]): string {
  const rows = [
    ['post', 'counter', 'votes', 'Score'],
    ...examples.map(({ id, counter, votes, score }) => [id, counter, votes, score ?? '-'].map(String)),
  ]
  return rows.map((row) => row.map((cell) => cell.padStart(10)).join('')).join('\n')
}
