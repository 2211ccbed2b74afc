import type { Pool } from 'pg'
import { z } from 'zod'

import type { Key } from '../counters/definition.ts'
import { PgtallyError } from '../errors.ts'
import { writeGroup } from './group.ts'
import type { GroupCall } from './group.ts'
import { lookUpTable } from './table.ts'
import type { Column, MembershipTable, TableNames } from './table.ts'
import { canonicalKey, encodeValue, isKey } from './values.ts'

export interface WriterOptions<C extends string = string> {
  /** The table with one row for each pair, as in SQL: `likes`, `app.likes`. It is looked up once; whatever a session's search path is later, it stays the same table. */
  table: string
  /** The column that rows are counted by, such as `post_id`: smallint, integer, bigint, uuid, text or varchar. */
  key: string
  /** The other column of the pair, such as `user_id`, of one of these types. The table needs a unique index on the two. */
  member: string
  /** Other columns that every `add()` gives a value for, `null` for NULL. Those that are not named get the table's defaults. */
  columns?: readonly C[] | undefined
  /** At most so many calls go into one statement. Less, if values are large: all of them must fit in memory at once, here and on the server. Default 2 000. */
  maxGroupSize?: number | undefined
  /** So many statements are under way at a time, each on a connection of the pool. Default 2. */
  maxGroupsInFlight?: number | undefined
  /**
   * How many calls may wait to be sent; one more is refused with WRITER_FULL. A waiting call takes up about half a kilobyte. `Infinity` refuses
   * none: each waits as long as it takes. Default 100 000.
   */
  maxWaiting?: number | undefined
  /** When it is aborted, calls that were not sent yet are refused with its reason, as are all later ones; those under way are settled as always. */
  signal?: AbortSignal | undefined
}

/** Not `undefined`, which is hardly meant to be NULL. */
type ColumnValues<C extends string> = [C] extends [never] ? [] : [values: Readonly<Record<C, NonNullable<unknown> | null>>]

const writerDefaults = { maxGroupSize: 2000, maxGroupsInFlight: 2, maxWaiting: 100_000 } as const

const identifier = z.string().min(1)
const atLeastOne = (value: number) => z.int().min(1).default(value)
const optionsSchema = z.strictObject({
  table: identifier,
  key: identifier,
  member: identifier,
  columns: z.array(identifier).default([]),
  maxGroupSize: atLeastOne(writerDefaults.maxGroupSize),
  maxGroupsInFlight: atLeastOne(writerDefaults.maxGroupsInFlight),
  maxWaiting: z.union([z.int().min(1), z.literal(Number.POSITIVE_INFINITY)]).default(writerDefaults.maxWaiting),
})

/** The calls between two calls of `flush()`. */
interface Generation {
  unsettled: number
  settled: () => void
}

interface Call extends GroupCall {
  /** What tells pairs apart, and orders them. */
  pair: string
  generation: Generation
  /** The next one of the same pair. */
  next: Call | undefined
}

/**
 * Writes rows of a table with one row for each pair, many in one statement: calls made while statements are under way go together with the next. Made by `tally.writer()`.
 *
 * - A promise is resolved after the commit that carries its row: it is then as durable as the server's settings make any commit of that connection
 *   (with `synchronous_commit = off`, it may take a moment).
 * - Calls for one pair take effect in the order in which they were made; there is no order among different pairs. Only a statement whose outcome is unknown may
 *   still be running when the next is sent.
 * - A row that the server objects to fails by itself, with the server's error as it is; the others of its group go through.
 * - Only OUTCOME_UNKNOWN leaves it open whether the row was written; with any other error it was not.
 * - A group waits for the locks that its rows need, for example while a post is being deleted; so does what comes after, once `maxGroupsInFlight` of them wait.
 */
export class Writer<K extends Key = Key, M extends Key = Key, C extends string = never> implements AsyncDisposable {
  readonly #pool: Pool
  readonly #names: TableNames
  readonly #maxGroupSize: number
  readonly #maxGroupsInFlight: number
  readonly #maxWaiting: number
  readonly #stopListening: () => void

  /** Undefined until it was looked up, and again when it turned out to be another. */
  #table: MembershipTable | undefined
  #lookingUp = false
  /** Calls made while the table is not known. */
  #unadmitted: Call[] = []
  /** Calls that may be sent: of each pair the first. */
  #ready: Call[] = []
  /** The last call of each pair that has one which is ready or under way. The others between are linked: of a pair, one at a time is sent. */
  readonly #last = new Map<string, Call>()
  readonly #inFlight = new Set<readonly Call[]>()
  #waiting = 0
  #scheduled = false
  #generation: Generation = { unsettled: 0, settled: () => {} }
  /** Resolves when all earlier generations are settled. */
  #earlier: Promise<unknown> = Promise.resolve()
  #closedBy: { reason: unknown } | undefined

  /** @internal Use `tally.writer()`. */
  constructor(pool: Pool, { signal, ...options }: WriterOptions<C>) {
    const parsed = optionsSchema.safeParse(options)
    if (!parsed.success) throw new PgtallyError('INVALID_ARGUMENT', `writer(): ${z.prettifyError(parsed.error).replaceAll('\n', ' ')}`)
    const { table, key, member, columns, maxGroupSize, maxGroupsInFlight, maxWaiting } = parsed.data
    this.#pool = pool
    this.#names = { table, key, member, columns }
    this.#maxGroupSize = maxGroupSize
    this.#maxGroupsInFlight = maxGroupsInFlight
    this.#maxWaiting = maxWaiting
    const abort = () => this.#abort(signal?.reason)
    this.#stopListening = () => signal?.removeEventListener('abort', abort)
    if (signal?.aborted) abort()
    else signal?.addEventListener('abort', abort)
  }

  /**
   * Adds the row (key, member), unless it is there; a row that is there keeps the values that it has.
   *
   * A BEFORE trigger that changes the pair makes the answer one about another pair: `false` then, though a row was added.
   *
   * @param values of the columns that were named, each as pg would take it; arrays for a json column are sent as JSON
   * @returns whether the row is new, after the commit
   * @throws PgtallyError WRITER_FULL, CLOSED, INVALID_ARGUMENT (the table will not do, a value cannot be sent), OUTCOME_UNKNOWN (the connection was lost while
   * the row was under way); errors of the server and of connecting unwrapped
   *
   * @example
   * ```ts
   * const reactions = tally.writer({ table: 'reactions', key: 'post_id', member: 'user_id', columns: ['emoji'] })
   * await reactions.add(42, 7, { emoji: '🎉' })
   * ```
   */
  add(key: K, member: M, ...[values]: ColumnValues<C>): Promise<boolean> {
    return this.#call(false, key, member, this.#names.columns.map((column) => (values as Readonly<Record<string, unknown>> | undefined)?.[column]))
  }

  /**
   * Removes the row (key, member), if it is there.
   *
   * @returns whether it was, after the commit
   * @throws as `add()`
   */
  remove(key: K, member: M): Promise<boolean> {
    return this.#call(true, key, member, [])
  }

  /** Resolves when every call made so far is settled, however many come in meanwhile. What became of each, its own promise says. */
  async flush(): Promise<void> {
    if (this.#generation.unsettled > 0) {
      const { promise, resolve } = Promise.withResolvers<void>()
      this.#generation.settled = resolve
      this.#generation = { unsettled: 0, settled: () => {} }
      this.#earlier = Promise.all([this.#earlier, promise])
    }
    await this.#earlier
  }

  /** Takes no more calls (CLOSED), and resolves when those made so far are settled. */
  async close(): Promise<void> {
    this.#closedBy ??= { reason: new PgtallyError('CLOSED', `The writer of "${this.#names.table}" was closed. Make another one.`) }
    await this.flush()
    this.#stopListening()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #abort(reason: unknown): void {
    this.#stopListening()
    this.#closedBy = { reason }
    this.#refuseWaiting(reason)
  }

  #call(removes: boolean, key: Key, member: Key, values: readonly unknown[]): Promise<boolean> {
    return new Promise((resolve, reject) => {
      if (this.#closedBy !== undefined) return reject(this.#closedBy.reason)
      if (this.#waiting >= this.#maxWaiting) {
        return reject(new PgtallyError('WRITER_FULL', `${this.#waiting} calls wait to be written to "${this.#names.table}" already. Wait for some of them, or allow more with maxWaiting.`))
      }
      const generation = this.#generation
      const call: Call = { removes, key, member, values, pair: '', next: undefined, generation, resolve, reject }
      generation.unsettled++
      this.#waiting++
      if (this.#table === undefined) this.#unadmitted.push(call)
      else this.#admit(call, this.#table)
      this.#schedule()
    })
  }

  /** Gives the call its place behind those of the same pair. */
  #admit(call: Call, table: MembershipTable): void {
    try {
      call.key = this.#canonical(call.key, table.key)
      call.member = this.#canonical(call.member, table.member)
      if (!call.removes && table.columns.length > 0) call.values = table.columns.map((column, index) => this.#encoded(call.values[index], column))
    } catch (error) {
      this.#waiting--
      return this.#refuse(call, error)
    }
    call.pair = `${call.key}\u0000${call.member}`
    const before = this.#last.get(call.pair)
    if (before === undefined) this.#ready.push(call)
    else before.next = call
    this.#last.set(call.pair, call)
  }

  #canonical(key: Key, { name, base }: Column): string {
    const text = isKey(key) ? canonicalKey(key, base) : undefined
    if (text !== undefined) return text
    throw new PgtallyError('INVALID_ARGUMENT', `${typeof key === 'string' ? `"${key}"` : String(key)} cannot be a ${name} of "${this.#names.table}", which is a ${base}. Nothing was written.`)
  }

  #encoded(value: unknown, { name, base }: Column): unknown {
    try {
      return encodeValue(value, base)
    } catch (error) {
      throw new PgtallyError('INVALID_ARGUMENT', `The value for "${name}" of "${this.#names.table}" cannot be sent: ${(error as Error).message}. Give every column that the writer names a value, or null.`, { cause: error })
    }
  }

  /** After the current turn, so that calls made in it go together. */
  #schedule(): void {
    if (this.#scheduled || this.#inFlight.size >= this.#maxGroupsInFlight) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#send()
    })
  }

  #send(): void {
    if (this.#waiting === 0) return
    if (this.#table === undefined) {
      void this.#lookUp()
      return
    }
    while (this.#ready.length > 0 && this.#inFlight.size < this.#maxGroupsInFlight) void this.#write(this.#table, this.#ready.splice(0, this.#maxGroupSize))
  }

  async #lookUp(): Promise<void> {
    if (this.#lookingUp) return
    this.#lookingUp = true
    try {
      const table = await lookUpTable(this.#pool, this.#names)
      this.#table = table
      for (const call of this.#unadmitted.splice(0)) this.#admit(call, table)
    } catch (error) {
      // What comes later looks again.
      this.#refuseWaiting(error)
    }
    this.#lookingUp = false
    this.#schedule()
  }

  async #write(table: MembershipTable, group: Call[]): Promise<void> {
    this.#waiting -= group.length
    this.#inFlight.add(group)
    group.sort((a, b) => (a.pair < b.pair ? -1 : 1))
    if (!(await writeGroup(this.#pool, table, group)) && this.#table === table) this.#table = undefined
    this.#inFlight.delete(group)
    for (const call of group) {
      if (call.next === undefined) this.#last.delete(call.pair)
      else this.#ready.push(call.next)
      this.#settled(call)
    }
    this.#schedule()
  }

  /** Refuses every call that is not under way. */
  #refuseWaiting(reason: unknown): void {
    const first = [...this.#unadmitted.splice(0), ...this.#ready.splice(0)]
    for (const { pair } of first) this.#last.delete(pair)
    for (const call of [...this.#inFlight].flat()) {
      if (call.next !== undefined) first.push(call.next)
      call.next = undefined
      this.#last.set(call.pair, call)
    }
    this.#waiting = 0
    for (let call of first) {
      this.#refuse(call, reason)
      while (call.next !== undefined) {
        call = call.next
        this.#refuse(call, reason)
      }
    }
  }

  #refuse(call: Call, reason: unknown): void {
    call.reject(reason)
    this.#settled(call)
  }

  #settled({ generation }: Call): void {
    generation.unsettled--
    if (generation.unsettled === 0) generation.settled()
  }
}
