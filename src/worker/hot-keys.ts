export interface HotKey {
  counter: string
  /** As text, in the server's spelling. */
  key: string
  /** Events, not rows: what one statement writes for a key is one event. */
  events: number
  /** What was added to the count. */
  delta: number
}

/** A key, its events and its delta, as `apply_batch()` gives them. */
export type BatchHotKey = [key: string, events: number, delta: string]

type Sums = Map<string, { events: number; delta: number }>

const keysPerBatch = 20
const mostKeysPerSlice = 1000
const keptKeysPerSlice = 200
const sliceMs = 10_000
const slices = 6
const unwatchedAfterMs = 15_000

/**
 * The keys with the most events in the batches that this process has applied in the last minute. It is fed with the top twenty of each batch, so a key that is in many
 * batches but never among those is not seen. Nothing is asked of the batches while nobody watches.
 */
export class HotKeys {
  static readonly windowSeconds = (slices * sliceMs) / 1000
  readonly #now: () => number
  /** The newest first. */
  #slices: { beganAt: number; counters: Map<string, Sums> }[] = []
  #watchedUntil = 0

  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /** How many keys each batch shall name. */
  get perBatch(): number {
    return this.#now() < this.#watchedUntil ? keysPerBatch : 0
  }

  add(counter: string, keys: readonly BatchHotKey[]): void {
    const { counters } = this.#slice()
    const sums = counters.get(counter) ?? new Map<string, { events: number; delta: number }>()
    counters.set(counter, sums)
    for (const [key, events, delta] of keys) {
      const sum = sums.get(key)
      sums.set(key, { events: events + (sum?.events ?? 0), delta: Number(delta) + (sum?.delta ?? 0) })
    }
    if (sums.size > mostKeysPerSlice) counters.set(counter, new Map(hottest(sums, keptKeysPerSlice)))
  }

  /** For somebody who is looking on: so that there is more to see when they look again. */
  watch(limit: number): HotKey[] {
    this.#watchedUntil = this.#now() + unwatchedAfterMs
    this.#forget()
    const totals = new Map<string, Sums>()
    for (const { counters } of this.#slices) {
      for (const [counter, sums] of counters) {
        const total = totals.get(counter) ?? new Map<string, { events: number; delta: number }>()
        totals.set(counter, total)
        for (const [key, { events, delta }] of sums) {
          const sum = total.get(key)
          total.set(key, { events: events + (sum?.events ?? 0), delta: delta + (sum?.delta ?? 0) })
        }
      }
    }
    return [...totals].flatMap(([counter, sums]) => hottest(sums, limit).map(([key, sum]) => ({ counter, key, ...sum }))).toSorted((one, other) => other.events - one.events)
  }

  #slice(): { counters: Map<string, Sums> } {
    const [newest] = this.#slices
    if (newest !== undefined && this.#now() - newest.beganAt < sliceMs) return newest
    this.#forget()
    const slice = { beganAt: this.#now(), counters: new Map<string, Sums>() }
    this.#slices.unshift(slice)
    return slice
  }

  #forget(): void {
    this.#slices = this.#slices.filter(({ beganAt }) => this.#now() - beganAt < slices * sliceMs)
  }
}

function hottest(sums: Sums, limit: number) {
  return [...sums].toSorted(([, one], [, other]) => other.events - one.events).slice(0, limit)
}
