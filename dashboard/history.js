/** @import { Status } from '../src/status.ts' */

/**
 * @typedef {object} Series all as long as the history's times; null where nothing is known
 * @property {(number | null)[]} applied events per second
 * @property {(number | null)[]} written events per second
 * @property {(number | null)[]} lag in seconds
 */

const windowSeconds = 300
const gapSeconds = 10

/** What was seen in the last five minutes, by the database's clock. */
export class History {
  /** @type {number[]} seconds since 1970 */
  times = []
  /** @type {Series} the sums of all counters; of lags the longest */
  total = { applied: [], written: [], lag: [] }
  /** @type {Map<string, Series>} */
  #counters = new Map()
  /** @type {Status | undefined} */
  #last

  /** @param {Status} status */
  add(status) {
    if (status.readAt === this.#last?.readAt) return
    const at = Date.parse(status.readAt) / 1000
    const before = this.#last === undefined ? undefined : Date.parse(this.#last.readAt) / 1000
    if (before !== undefined && at < before) this.#clear()
    else if (before !== undefined && at - before > gapSeconds) this.#append(before + 1, () => undefined)
    const earlier = new Map(this.#last?.counters.map((counter) => [counter.name, counter]))
    const now = new Map(status.counters.map((counter) => [counter.name, counter]))
    for (const name of now.keys()) this.#series(name)
    this.#append(at, (name) => {
      const counter = now.get(name)
      if (counter === undefined) return undefined
      const then = earlier.get(name)
      const passed = before === undefined ? 0 : at - before
      const applied = then === undefined || passed <= 0 ? null : (counter.events - then.events) / passed
      const written = then === undefined || passed <= 0 ? null : (counter.events + counter.pendingEvents - then.events - then.pendingEvents) / passed
      // One that was made anew begins at 0.
      return { applied: applied !== null && applied < 0 ? null : applied, written: written !== null && written < 0 ? null : written, lag: counter.lagSeconds }
    })
    this.#last = status
    this.#forget(at - windowSeconds, now)
  }

  /** @param {string} name */
  of(name) {
    return this.#series(name)
  }

  /**
   * @param {number} at
   * @param {(name: string) => { applied: number | null, written: number | null, lag: number } | undefined} valueOf
   */
  #append(at, valueOf) {
    this.times.push(at)
    /** @type {{ applied: number | null, written: number | null, lag: number | null }} */
    const total = { applied: null, written: null, lag: null }
    for (const [name, series] of this.#counters) {
      const value = valueOf(name)
      series.applied.push(value?.applied ?? null)
      series.written.push(value?.written ?? null)
      series.lag.push(value?.lag ?? null)
      if (value === undefined) continue
      if (value.applied !== null) total.applied = (total.applied ?? 0) + value.applied
      if (value.written !== null) total.written = (total.written ?? 0) + value.written
      total.lag = Math.max(total.lag ?? 0, value.lag)
    }
    this.total.applied.push(total.applied)
    this.total.written.push(total.written)
    this.total.lag.push(total.lag)
  }

  /** @param {string} name */
  #series(name) {
    const nothing = () => this.times.map(() => null)
    const series = this.#counters.get(name) ?? { applied: nothing(), written: nothing(), lag: nothing() }
    this.#counters.set(name, series)
    return series
  }

  /**
   * @param {number} until
   * @param {Map<string, unknown>} present
   */
  #forget(until, present) {
    const old = Math.max(this.times.findIndex((at) => at >= until), 0)
    this.times.splice(0, old)
    for (const { applied, written, lag } of [this.total, ...this.#counters.values()]) for (const values of [applied, written, lag]) values.splice(0, old)
    for (const [name, { lag }] of this.#counters) if (!present.has(name) && lag.every((value) => value === null)) this.#counters.delete(name)
  }

  #clear() {
    this.times = []
    this.total = { applied: [], written: [], lag: [] }
    this.#counters.clear()
    this.#last = undefined
  }
}

/** @param {readonly (number | null)[]} values */
export const newest = (values) => values.at(-1) ?? null

/** @param {readonly (number | null)[]} values */
export const highest = (values) => values.reduce((/** @type {number} */ most, value) => Math.max(most, value ?? 0), 0)
