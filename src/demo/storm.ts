import { setTimeout as sleep } from 'node:timers/promises'

import type { Pool } from 'pg'

import { isDatabaseError } from '../errors.ts'
import { celebrity, likesBefore } from './playground.ts'
import type { Behind, OpenWay, Way } from './ways.ts'

/** Connections settle and caches fill before the measurement begins. */
const warmUpMs = 500
const readIntervalMs = 20
// Asking costs the server a few milliseconds, as much as some ten likes.
const sampleIntervalMs = 100
const progressIntervalMs = 100
const recentMs = 1000
const shareOfUnlikes = 0.2

export interface StormOptions {
  way: Way
  openWay: OpenWay
  /** As many connections as shall like and unlike. */
  writers: Pool
  /** The connection that reads the count all the time. */
  reader: Pool
  connections: number
  seconds: number
  /** Ends the storm early; it then throws the signal's reason. */
  signal: AbortSignal
  onProgress(progress: StormProgress): void
}

/** The state of the last second. */
export interface StormProgress {
  elapsedMs: number
  /** With the time to warm up. */
  totalMs: number
  /** Likes and unlikes. */
  perSecond: number
  readMs: number
  behind: Behind
  /** The count as the reader saw it last. */
  shownCount: number
}

export interface StormResult {
  /** From the first to the last moment, as acknowledged by the server. */
  likes: number
  unlikes: number
  /** Likes and unlikes while it was measured. */
  perSecond: number
  /** Sorted. */
  readMs: number[]
  /** Sorted, each of its own. */
  behindLikes: number[]
  behindMs: number[]
}

interface Timed<T> {
  at: number
  value: T
}

/** The value below which the share `q` of `sorted` lies (nearest rank); 0 where there is none. */
export function quantile(sorted: readonly number[], q: number): number {
  return sorted[Math.max(Math.ceil(q * sorted.length) - 1, 0)] ?? 0
}

/**
 * Likes and unlikes one post from many connections, each awaiting one statement after the other, while one connection
 * reads the count every 20 ms. Users like once; who unlikes has liked on the same connection before.
 */
export async function runStorm(options: StormOptions): Promise<StormResult> {
  await openConnections(options.writers, options.connections)
  return new Storm(options).run()
}

async function openConnections(pool: Pool, connections: number): Promise<void> {
  try {
    // All at once, so the pool opens as many.
    await Promise.all(Array.from({ length: connections }, () => pool.query('select 1')))
  } catch (error) {
    if (!isDatabaseError(error) || error.code !== '53300') throw error
    throw new Error(`The server has no room for ${connections} more connections (${error.message}). Give a smaller number as --connections.`, { cause: error })
  }
}

class Storm {
  readonly #options: StormOptions
  readonly #failure = new AbortController()
  readonly #stopped: AbortSignal
  readonly #startedAt = performance.now()
  readonly #measuredFrom = this.#startedAt + warmUpMs
  readonly #endsAt: number
  readonly #reads: Timed<number>[] = []
  readonly #samples: Timed<Behind>[] = []
  /** Likes and unlikes by the time of each progress report. */
  readonly #pace: Timed<number>[] = []
  #lastUser = likesBefore
  #likes = 0
  #unlikes = 0
  #measured = 0
  #shownCount = 0

  constructor(options: StormOptions) {
    this.#options = options
    this.#stopped = AbortSignal.any([options.signal, this.#failure.signal])
    this.#endsAt = this.#measuredFrom + options.seconds * 1000
  }

  async run(): Promise<StormResult> {
    const { connections, signal, seconds } = this.#options
    const writers = Array.from({ length: connections }, () => this.#write())
    const loops = [...writers, this.#read(), this.#sample(), this.#report()]
    // When one fails, the others end, too, before anyone closes their connections.
    const ended = await Promise.allSettled(loops.map((loop) => loop.catch((error: unknown) => {
      this.#failure.abort()
      throw error
    })))
    for (const result of ended) if (result.status === 'rejected') throw result.reason
    signal.throwIfAborted()
    const samples = this.#samples.filter(({ at }) => this.#isMeasured(at))
    return {
      likes: this.#likes,
      unlikes: this.#unlikes,
      perSecond: this.#measured / seconds,
      readMs: ascending(this.#reads.filter(({ at }) => this.#isMeasured(at)).map(({ value }) => value)),
      behindLikes: ascending(samples.map(({ value }) => value.likes)),
      behindMs: ascending(samples.map(({ value }) => value.ms)),
    }
  }

  get #over(): boolean {
    return this.#stopped.aborted || performance.now() >= this.#endsAt
  }

  #isMeasured(at: number): boolean {
    return at >= this.#measuredFrom && at < this.#endsAt
  }

  async #write(): Promise<void> {
    const { way, writers } = this.#options
    const liked: number[] = []
    while (!this.#over) {
      const unlike = Math.random() < shareOfUnlikes ? takeAny(liked) : undefined
      if (unlike === undefined) {
        const user = ++this.#lastUser
        await writers.query(way.like, [celebrity, user])
        liked.push(user)
        this.#likes++
      } else {
        await writers.query(way.unlike, [celebrity, unlike])
        this.#unlikes++
      }
      if (this.#isMeasured(performance.now())) this.#measured++
    }
  }

  async #read(): Promise<void> {
    const { way, reader } = this.#options
    await this.#every(readIntervalMs, async () => {
      const startedAt = performance.now()
      const { rows } = await reader.query<{ count: string }>(way.read, [celebrity])
      const at = performance.now()
      this.#reads.push({ at, value: at - startedAt })
      this.#shownCount = Number(rows[0]?.count)
    })
  }

  async #sample(): Promise<void> {
    const { openWay } = this.#options
    await this.#every(sampleIntervalMs, async () => {
      const value = await openWay.sampleBehind?.()
      if (value !== undefined) this.#samples.push({ at: performance.now(), value })
    })
  }

  async #report(): Promise<void> {
    await this.#every(progressIntervalMs, async () => {
      const now = performance.now()
      const done = this.#likes + this.#unlikes
      this.#pace.push({ at: now, value: done })
      const since = this.#pace.find(({ at }) => at >= now - recentMs - progressIntervalMs / 2)
      const elapsedMs = since === undefined ? 0 : now - since.at
      this.#options.onProgress({
        elapsedMs: now - this.#startedAt,
        totalMs: this.#endsAt - this.#startedAt,
        perSecond: since === undefined || elapsedMs === 0 ? 0 : ((done - since.value) / elapsedMs) * 1000,
        readMs: quantile(ascending(this.#recent(this.#reads, now)), 0.5),
        behind: this.#samples.at(-1)?.value ?? { likes: 0, ms: 0 },
        shownCount: this.#shownCount,
      })
    })
  }

  #recent<T>(values: readonly Timed<T>[], now: number): T[] {
    const first = values.findLastIndex(({ at }) => at < now - recentMs) + 1
    return values.slice(first).map(({ value }) => value)
  }

  /** Starts `work` that often, and not again before it has ended. */
  async #every(intervalMs: number, work: () => Promise<void>): Promise<void> {
    while (!this.#over) {
      const startedAt = performance.now()
      await work()
      const restMs = Math.min(startedAt + intervalMs, this.#endsAt) - performance.now()
      if (restMs > 0) await sleep(restMs, undefined, { signal: this.#stopped }).catch(() => {})
    }
  }
}

function ascending(values: number[]): number[] {
  return values.toSorted((one, other) => one - other)
}

function takeAny(values: number[]): number | undefined {
  const index = Math.floor(Math.random() * values.length)
  const value = values[index]
  const last = values.pop()
  if (index < values.length && last !== undefined) values[index] = last
  return value
}
