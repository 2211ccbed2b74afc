import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'
import type { Pool, PoolClient } from 'pg'

// In your project: 'pgtally'.
import { createTally } from '../../src/index.ts'
import type { CounterStatus, Tally } from '../../src/index.ts'
import { compareBuckets, describeWrong } from './buckets.ts'
import type { BucketComparison } from './buckets.ts'
import { counters, defineScores } from './counters.ts'
import { DumpError, openDump } from './dump.ts'
import type { DumpFile, Post, Vote } from './dump.ts'
import { createRandom, emittedFor, planTransactions } from './plan.ts'
import type { Transaction } from './plan.ts'
import { sumsOf } from './sums.ts'
import { Tables } from './tables.ts'
import type { Comparison } from './tables.ts'

export interface ReplayOptions {
  /** Holds Posts.xml and Votes.xml. */
  directory: string
  databaseUrl: string
  /** How many connections cast votes at the same time. */
  connections: number
  /** Decides which votes are cast together, and which are withdrawn; the order among connections is the server's. */
  seed: number
  /** Leave the tables and pgtally in the database. */
  keep?: boolean
  /** Ends the replay early, with an error; what it made is removed. */
  signal?: AbortSignal | undefined
  /** Called about five times a second, and when the phase changes. */
  onProgress?: (progress: Readonly<Progress>) => void
}

export interface Progress {
  phase: 'loading posts' | 'casting votes' | 'catching up' | 'comparing'
  /** How much of the phase's file has been read, from 0 to 1. */
  shareRead: number
  posts: number
  /** Rows of Votes.xml whose votes have been cast. */
  votes: number
  votesPerSecond: number
  pendingEvents: number
  lagSeconds: number
}

/** What the connections did, and what the counter of posts must have seen of it. */
interface Totals {
  votes: number
  withdrawn: number
  transactions: number
  events: number
  /** Events for posts that do not exist. */
  droppedEvents: number
}

export interface ReplayResult extends Comparison {
  expected: Totals
  /** The time buckets of both counters, by width. */
  buckets: BucketComparison[]
  /** As the status of the counter of posts says. */
  appliedEvents: number
  droppedEvents: number
  batches: number
  /** From the first vote until the last one was committed. */
  castSeconds: number
  /** From then until everything was applied. */
  catchUpSeconds: number
  /** The greatest age of an event that was waiting to be applied, in a look every 0.2 s. */
  greatestLagSeconds: number
  /** Schemas of the tables and of pgtally. */
  schemas: { tables: string; tally: string }
  /** What is wrong with the counters, in sentences; empty when they are exact. */
  problems: string[]
}

const votesInChunk = 200
const sampleIntervalMs = 200
/** Beside those that cast: one that looks where it stands, and the worker's. */
const otherConnections = 6

/**
 * Replays a site of the Stack Exchange data dump against counters for each post's and each tag's score, by hour, day and month, too.
 *
 * @throws DumpError when the dump cannot be read; the reason of `signal`; errors of the database
 */
export async function replay(options: ReplayOptions): Promise<ReplayResult> {
  const { directory, databaseUrl, connections, seed, keep = false, signal = new AbortController().signal, onProgress = () => {} } = options
  const dump = await openDump(directory)
  const pool = new pg.Pool({ connectionString: databaseUrl, max: connections + otherConnections, application_name: 'pgtally stack-exchange' })
  // An idle connection that dies reports it here; unheard, it would end the process. The next statement tells.
  pool.on('error', () => {})
  const run = randomBytes(4).toString('hex')
  const tables = new Tables(pool, `stack_exchange_${run}`)
  const tally = createTally({ pool, schema: `pgtally_${run}`, counters: defineScores(tables.schema) })
  try {
    await tables.create()
    await tally.install()
    return await new Replay(pool, tables, tally, signal, onProgress).run(dump, connections, seed)
  } finally {
    if (!keep) {
      await tally.uninstall()
      await tables.drop()
    }
    await pool.end()
  }
}

class Replay {
  readonly #pool: Pool
  readonly #tables: Tables
  readonly #tally: Tally
  readonly #signal: AbortSignal
  readonly #onProgress: (progress: Readonly<Progress>) => void
  readonly #totals: Totals = { votes: 0, withdrawn: 0, transactions: 0, events: 0, droppedEvents: 0 }
  readonly #progress: Progress = { phase: 'loading posts', shareRead: 0, posts: 0, votes: 0, votesPerSecond: 0, pendingEvents: 0, lagSeconds: 0 }
  #file: DumpFile<unknown> | undefined
  #castingSince = 0
  #greatestLagSeconds = 0

  constructor(pool: Pool, tables: Tables, tally: Tally, signal: AbortSignal, onProgress: (progress: Readonly<Progress>) => void) {
    this.#pool = pool
    this.#tables = tables
    this.#tally = tally
    this.#signal = signal
    this.#onProgress = onProgress
  }

  async run(dump: { posts: DumpFile<Post>; votes: DumpFile<Vote> }, connections: number, seed: number): Promise<ReplayResult> {
    const ending = new AbortController()
    const sampling = this.#sample(ending.signal)
    const worker = this.#tally.worker()
    try {
      await this.#loadPosts(dump.posts)
      await this.#castVotes(dump.votes, connections, seed)
      const castSeconds = this.#secondsCasting()

      // The worker is at it, too; this returns when nothing is left.
      this.#enter('catching up')
      const { failed } = await this.#tally.drain()
      for (const { counter, error } of failed) throw new Error(`The counter ${counter} could not apply all: ${error}`)
      const catchUpSeconds = this.#secondsCasting() - castSeconds

      this.#enter('comparing')
      const comparison = await this.#tables.compare()
      const schemas = { tables: this.#tables.schema, tally: this.#tally.schema }
      const buckets = await compareBuckets(this.#pool, schemas, sumsOf(dump), this.#signal)
      return this.#result(comparison, buckets, await this.#counterStatuses(), { castSeconds, catchUpSeconds })
    } finally {
      ending.abort()
      await Promise.all([worker.stop(), sampling])
    }
  }

  async #loadPosts(posts: DumpFile<Post>): Promise<void> {
    this.#enter('loading posts', posts)
    const client = await this.#pool.connect()
    const counted = async function* (progress: Progress) {
      for await (const post of posts.rows()) {
        progress.posts++
        yield post
      }
    }
    try {
      await this.#tables.loadPosts(client, counted(this.#progress), this.#signal)
    } catch (error) {
      client.release(true)
      this.#signal.throwIfAborted()
      if (isDuplicateKey(error)) throw new DumpError(`${posts.name} has two posts with the same Id: ${error.detail}`, { cause: error })
      throw error
    }
    client.release()
    await this.#tables.analyze()
  }

  async #castVotes(votes: DumpFile<Vote>, connections: number, seed: number): Promise<void> {
    this.#enter('casting votes', votes)
    this.#castingSince = performance.now()
    // One reader for all connections: it reads on when one of them asks for more, so it never gets ahead of the database.
    const chunks = inChunks(votes.rows())
    const casting = Array.from({ length: connections }, () => this.#castChunks(chunks, votes.name, seed))
    // When one fails, the others finish what they have in hand: it is the end of the chunks for them.
    const outcomes = await Promise.allSettled(casting)
    for (const outcome of outcomes) {
      if (outcome.status === 'rejected') throw outcome.reason
    }
  }

  async #castChunks(chunks: AsyncIterable<Chunk>, file: string, seed: number): Promise<void> {
    const client = await this.#pool.connect()
    try {
      for await (const { index, votes } of chunks) {
        const missing = await this.#tables.missingPosts(client, votes)
        for (const transaction of planTransactions(votes, createRandom(seed, index))) {
          this.#signal.throwIfAborted()
          await this.#execute(client, transaction).catch((error: unknown) => {
            if (!isDuplicateKey(error)) throw error
            const lines = `${votes[0]?.line}-${votes.at(-1)?.line}`
            throw new DumpError(`${file}:${lines}: a vote there has the Id of another: ${error.detail}`, { cause: error })
          })
          this.#count(transaction, missing)
        }
        this.#totals.votes += votes.length
      }
    } catch (error) {
      client.release(true)
      throw error
    }
    client.release()
  }

  async #execute(client: PoolClient, transaction: Transaction): Promise<void> {
    const single = transaction.length === 1
    if (!single) await client.query('begin')
    for (const statement of transaction) await this.#tables.execute(client, statement)
    if (!single) await client.query('commit')
  }

  #count(transaction: Transaction, missing: ReadonlySet<number>): void {
    this.#totals.transactions++
    for (const statement of transaction) {
      if (statement.kind === 'withdraw') this.#totals.withdrawn += statement.votes.length
      for (const postId of emittedFor(statement)) {
        this.#totals.events++
        if (missing.has(postId)) this.#totals.droppedEvents++
      }
    }
  }

  #enter(phase: Progress['phase'], file?: DumpFile<unknown>): void {
    this.#progress.phase = phase
    this.#file = file
    this.#report()
  }

  #report(): void {
    this.#progress.shareRead = this.#file?.shareRead ?? 1
    this.#progress.votes = this.#totals.votes
    if (this.#progress.phase === 'casting votes') this.#progress.votesPerSecond = this.#totals.votes / Math.max(this.#secondsCasting(), 0.001)
    this.#onProgress(this.#progress)
  }

  #secondsCasting(): number {
    return (performance.now() - this.#castingSince) / 1000
  }

  async #sample(ending: AbortSignal): Promise<void> {
    while (!ending.aborted) {
      // The replay's own statements tell when the database is in trouble.
      const statuses = Object.values((await this.#counterStatuses().catch(() => undefined)) ?? {})
      this.#progress.pendingEvents = statuses.reduce((sum, { pendingEvents }) => sum + pendingEvents, 0)
      this.#progress.lagSeconds = Math.max(0, ...statuses.map(({ lagSeconds }) => lagSeconds))
      this.#greatestLagSeconds = Math.max(this.#greatestLagSeconds, this.#progress.lagSeconds)
      this.#report()
      await sleep(sampleIntervalMs, undefined, { signal: ending }).catch(() => {})
    }
  }

  async #counterStatuses(): Promise<Record<keyof typeof counters, CounterStatus>> {
    const statuses = (await this.#tally.status()).counters
    const of = (counter: string) => {
      const status = statuses.find(({ name }) => name === counter)
      if (status === undefined) throw new Error(`The counter ${counter} is gone: something else has dropped it.`)
      return status
    }
    return { post: of(counters.post), tag: of(counters.tag) }
  }

  #result(
    comparison: Comparison,
    buckets: BucketComparison[],
    { post: status, tag }: Record<keyof typeof counters, CounterStatus>,
    seconds: { castSeconds: number; catchUpSeconds: number },
  ): ReplayResult {
    const expected = this.#totals
    const [pending, carried] = [status.pendingEvents + tag.pendingEvents, status.carriedKeys + tag.carriedKeys]
    const checks: [correct: boolean, problem: string][] = [
      [comparison.wrongCounters === 0, `Of ${comparison.posts} counters, ${comparison.wrongCounters} do not equal the votes cast.`],
      [comparison.posts === this.#progress.posts, `${this.#progress.posts} posts were read and ${comparison.posts} are there.`],
      [comparison.votes === expected.votes, `${expected.votes} votes were cast for good and ${comparison.votes} are there.`],
      [status.events === expected.events, `${expected.events} events were emitted and ${status.events} were applied.`],
      [status.droppedEvents === expected.droppedEvents, `${expected.droppedEvents} events were for missing posts and ${status.droppedEvents} were counted as dropped.`],
      [pending + carried === 0, `${pending} events are pending and ${carried} keys are carried after all was applied.`],
      ...buckets.map((width): [boolean, string] => [width.wrong === 0, describeWrong(width)]),
    ]
    return {
      ...comparison,
      ...seconds,
      buckets,
      expected,
      appliedEvents: status.events,
      droppedEvents: status.droppedEvents,
      batches: status.batches,
      greatestLagSeconds: this.#greatestLagSeconds,
      schemas: { tables: this.#tables.schema, tally: this.#tally.schema },
      problems: checks.flatMap(([correct, problem]) => (correct ? [] : [problem])),
    }
  }
}

interface Chunk {
  index: number
  votes: Vote[]
}

async function* inChunks(votes: AsyncIterable<Vote>): AsyncGenerator<Chunk, void, undefined> {
  let index = 0
  let chunk: Vote[] = []
  for await (const vote of votes) {
    chunk.push(vote)
    if (chunk.length === votesInChunk) {
      yield { index: index++, votes: chunk }
      chunk = []
    }
  }
  if (chunk.length > 0) yield { index, votes: chunk }
}

function isDuplicateKey(error: unknown): error is pg.DatabaseError {
  return error instanceof pg.DatabaseError && error.code === '23505'
}
