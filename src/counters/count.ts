import { PgtallyError } from '../errors.ts'
import type { Executor } from '../executor.ts'
import type { Key } from './definition.ts'

export interface ReadOptions {
  /** Read here instead of on the pool, for example inside a transaction. */
  executor?: Executor | undefined
  /** The exact count at this moment, however far the worker is behind, with its parts. Reads through what is pending. Default false. */
  fresh?: boolean | undefined
  /** Give `bigint`s, for counts beyond 2^53 - 1. Default false. */
  bigint?: boolean | undefined
}

export type CountOptions = Pick<ReadOptions, 'executor' | 'bigint'>

type OptionOf<O, Name> = Name extends keyof O ? O[Name] : false
// Both distribute: an option that may be either gives either.
type NumberFor<Bigint> = Bigint extends true ? bigint : number
type CountFor<Fresh, N extends number | bigint> = Fresh extends true ? FreshCount<N> : N

/** What numbers a read with these options gives. */
export type NumberOf<O> = NumberFor<OptionOf<O, 'bigint'>>

/** What a read with these options gives: a number, and with `fresh` a `FreshCount`. */
export type Count<O> = CountFor<OptionOf<O, 'fresh'>, NumberOf<O>>

/** A count and what it is made of, all at one instant. */
export interface FreshCount<N extends number | bigint = number> {
  /** `stored + carried + pending` */
  count: N
  /** In the target. */
  stored: N
  /** Taken from the queue and not added yet, as the target's row is locked. */
  carried: N
  /** In the queue. */
  pending: N
}

/** @throws PgtallyError UNSAFE_COUNT */
export function safeNumber(counter: string, key: Key, count: bigint): number {
  const number = Number(count)
  if (!Number.isSafeInteger(number)) {
    throw new PgtallyError('UNSAFE_COUNT', `Counter "${counter}": the count of ${key}, ${count}, is beyond what a number can hold. Read it with counter.get() and { bigint: true }.`)
  }
  return number
}
