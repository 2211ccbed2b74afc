import { setTimeout as sleep } from 'node:timers/promises'

import { describeError } from '../errors.ts'
import type { Logger } from '../logger.ts'

/** What one committed transaction has changed. */
export interface AppliedChanges {
  counter: string
  /**
   * Greater than that of every earlier change of the same counter, by whichever worker, in the order of the commits. It survives restarts, and that the counter is dropped
   * and created again; not that the database is restored from a backup. As for a read, see `counter.getVersioned()`.
   */
  version: bigint
  /** The keys whose stored count was changed, each once; at least one. */
  changes: readonly AppliedChange[]
}

export interface AppliedChange {
  /** As text, in the server's spelling. */
  key: string
  /** The new stored count: a number where a number can hold it exactly, a bigint beyond 2^53 - 1. */
  value: number | bigint
}

export type OnApplied = (changes: AppliedChanges) => void | Promise<void>

const longestCallMs = 2000

/** Tells a caller's function what was changed of one counter: in the order of the versions, one call at a time. */
export class Reporter {
  readonly #onApplied: OnApplied
  readonly #logger: Logger
  #last: Promise<void> = Promise.resolve()
  #isUnderWay = false

  constructor(onApplied: OnApplied, logger: Logger) {
    this.#onApplied = onApplied
    this.#logger = logger
  }

  /**
   * To be called by a transaction that has its version and has not committed yet. It holds the consumer's lock until it commits, so nobody can have a later version before that:
   * turns are taken in the order of the versions, though answers to two commits may arrive in any.
   *
   * @returns what to call after the commit, or without changes when there was none
   */
  takeTurn(): (applied?: AppliedChanges) => Promise<void> {
    const before = this.#last
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#last = promise
    return async (applied) => {
      await before
      if (applied !== undefined) await this.#call(applied)
      resolve()
    }
  }

  /** Never throws. Does not wait for ever: then what comes meanwhile is not told, as calls do not overlap. */
  async #call(applied: AppliedChanges): Promise<void> {
    if (this.#isUnderWay) return
    const { counter } = applied
    const call = this.#safely(applied)
    const waiting = new AbortController()
    this.#isUnderWay = true
    void call.finally(() => {
      this.#isUnderWay = false
      waiting.abort()
    })
    await sleep(longestCallMs, undefined, { signal: waiting.signal }).catch(() => {})
    if (!this.#isUnderWay) return
    this.#logger.warn({ counter, ms: longestCallMs }, 'onApplied takes long: counting goes on, and what changes until it returns is not told')
  }

  async #safely(applied: AppliedChanges): Promise<void> {
    try {
      await this.#onApplied(applied)
    } catch (error) {
      this.#logger.warn({ counter: applied.counter, error: describeError(error) }, 'onApplied failed, these changes are not told again')
    }
  }
}
