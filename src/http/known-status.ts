import { describeError } from '../errors.ts'
import type { Status } from '../status.ts'

const freshMs = 1000
const patienceMs = 2000

/** What is known of the database. */
export interface Known {
  /** Undefined until it has been read once. */
  status: Status | undefined
  /** When that was read, as of `performance.now()`. */
  readAt: number
  /** Why it could not be read just now. */
  error: string | undefined
}

/**
 * The status of the database for whoever shows it: read when asked for, at most once a second and one at a time, however many ask. Whoever asks waits two seconds for it at
 * most, then is given what was known before.
 */
export class KnownStatus {
  readonly #read: () => Promise<Status>
  readonly #known: Known = { status: undefined, readAt: 0, error: undefined }
  #triedAt = Number.NEGATIVE_INFINITY
  #reading: Promise<void> | undefined

  constructor(read: () => Promise<Status>) {
    this.#read = read
  }

  async get(): Promise<Known> {
    if (this.#reading === undefined && performance.now() - this.#triedAt >= freshMs) {
      this.#reading = this.#refresh().finally(() => {
        this.#reading = undefined
      })
    }
    if (this.#reading === undefined) return { ...this.#known }
    const { promise: late, resolve } = Promise.withResolvers<'late'>()
    const timer = setTimeout(resolve, patienceMs, 'late')
    const outcome = await Promise.race([this.#reading, late])
    clearTimeout(timer)
    return outcome === 'late' ? { ...this.#known, error: `the database has not said within ${patienceMs} ms where it stands` } : { ...this.#known }
  }

  async #refresh(): Promise<void> {
    try {
      const status = await this.#read()
      Object.assign(this.#known, { status, readAt: performance.now(), error: undefined })
    } catch (error) {
      this.#known.error = describeError(error)
    }
    this.#triedAt = performance.now()
  }
}
