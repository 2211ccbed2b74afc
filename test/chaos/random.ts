/** A seeded generator (mulberry32), so that a run can be repeated as far as the scheduler allows. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed
  }

  /** At least 0, less than 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number, at least 1 and at most `most`. */
  upTo(most: number): number {
    return 1 + Math.floor(this.next() * most)
  }

  pick<T>(items: readonly [T, ...T[]]): T {
    return items[this.upTo(items.length) - 1] ?? items[0]
  }

  fork(): Random {
    return new Random(this.upTo(2 ** 31))
  }
}
