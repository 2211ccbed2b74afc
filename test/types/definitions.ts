// Checked by `npm run typecheck`; nothing here runs.
import type { ColumnType, Kysely, Transaction } from 'kysely'
import type pg from 'pg'
import { expectTypeOf } from 'vitest'

import { createTally, defineCounters, type Bucket, type Counter, type FreshCount, type KeyCount, type Measurement, type Milestone, type ReadOptions, type SpikingKey, type TransactionToken, type TrendingKey, type VersionedCount, type WaitOptions } from '../../src/index.ts'

/** As kysely-codegen writes them. */
type Generated<T> = T extends ColumnType<infer S, infer I, infer U> ? ColumnType<S, I | undefined, U> : ColumnType<T, T | undefined, T>
type Int8 = ColumnType<string, bigint | number | string, bigint | number | string>
type Timestamp = ColumnType<Date, Date | string, Date | string>
type Json = ColumnType<unknown, string, string>

interface DB {
  tag_uses: { tag: string; used_at: Generated<Timestamp>; deleted_at: Date | null; noted: string; number: Int8; done: boolean }
  posts: { id: Generated<number>; slug: string; like_count: Generated<number>; big_count: Generated<Int8>; views: number | null; title: string; at: Timestamp; meta: Json; open: boolean; fixed: ColumnType<number, number, never> }
  likes: { id: Generated<Int8>; post_id: number; user_id: string; at: Timestamp }
  big_likes: { post_id: Int8 }
  'app.reactions': { post_id: number | null; kind: string }
}

declare const pool: pg.Pool
declare const client: pg.PoolClient
declare const kysely: Kysely<DB>
declare const transaction: Transaction<DB>

const define = defineCounters<DB>()

const counters = define({
  likes: { source: { table: 'likes', key: 'post_id', where: 'true' }, target: { table: 'posts', key: 'id', column: 'like_count' }, milestones: [10, 100] },
  big: { source: { table: 'big_likes', key: 'post_id' }, target: { table: 'posts', key: 'id', column: 'big_count' } },
  nullable: { source: { table: 'app.reactions', key: 'post_id', sum: '1' }, target: { table: 'posts', key: 'id', column: 'views' } },
  slugs: { target: { table: 'posts', key: 'slug', column: 'like_count' }, onMissing: 'error' },
  own: { source: { table: 'likes', key: 'user_id' } },
  pages: { keyType: 'text' },
  anything: { keyType: 'bigint' },
  follower: { queue: 'likes' },
  tags: {
    source: { table: 'tag_uses', key: 'tag', time: 'used_at' },
    buckets: [{ width: '1 hour', retain: '30 days' }, { width: '1 day', retain: 'forever', timeZone: 'Europe/Berlin' }],
    ranking: true,
    trending: [{ halfLife: '6 hours' }],
  },
  nullable_time: { source: { table: 'tag_uses', key: 'tag', time: 'deleted_at' } },
  text_time: { source: { table: 'tag_uses', key: 'tag', time: 'noted' } },
})
const tally = createTally({ pool, counters })

expectTypeOf(tally.counters.likes).toEqualTypeOf<Counter<number>>()
expectTypeOf(tally.counters.big).toEqualTypeOf<Counter<string | number | bigint>>()
expectTypeOf(tally.counters.nullable).toEqualTypeOf<Counter<number>>()
expectTypeOf(tally.counters.slugs).toEqualTypeOf<Counter<string>>()
expectTypeOf(tally.counters.own).toEqualTypeOf<Counter<string>>()
expectTypeOf(tally.counters.pages).toEqualTypeOf<Counter<string>>()
expectTypeOf(tally.counters.anything).toEqualTypeOf<Counter<string | number | bigint>>()
expectTypeOf<keyof typeof tally.counters>().toEqualTypeOf<'likes' | 'big' | 'nullable' | 'slugs' | 'own' | 'pages' | 'anything' | 'follower' | 'tags' | 'nullable_time' | 'text_time'>()

expectTypeOf(tally.counters.likes.get(1)).toEqualTypeOf<Promise<number>>()
expectTypeOf(tally.counters.likes.get(1, { bigint: true })).toEqualTypeOf<Promise<bigint>>()
expectTypeOf(tally.counters.likes.getVersioned(1)).toEqualTypeOf<Promise<VersionedCount>>()
expectTypeOf(tally.counters.likes.getVersioned(1, { bigint: true })).toEqualTypeOf<Promise<VersionedCount<bigint>>>()
expectTypeOf(tally.counters.likes.milestones(1)).toEqualTypeOf<Promise<Milestone[]>>()
expectTypeOf(tally.counters.likes.milestones(undefined, { bigint: true })).toEqualTypeOf<Promise<Milestone<bigint>[]>>()
expectTypeOf(tally.counters.tags).toEqualTypeOf<Counter<string>>()
const window = '1 hour'
const from = new Date()
expectTypeOf(tally.counters.tags.series('a', { width: window })).toEqualTypeOf<Promise<Bucket[]>>()
expectTypeOf(tally.counters.likes.series(1, { width: window, from, to: from, bigint: true, executor: transaction })).toEqualTypeOf<Promise<Bucket<bigint>[]>>()
expectTypeOf(tally.counters.tags.top()).toEqualTypeOf<Promise<KeyCount[]>>()
expectTypeOf(tally.counters.tags.top({ limit: 3, window, where: { kind: 'a', open: true, n: 1, big: 2n }, executor: client })).toEqualTypeOf<Promise<KeyCount[]>>()
expectTypeOf(tally.counters.tags.top({ window: { from }, bigint: true })).toEqualTypeOf<Promise<KeyCount<bigint>[]>>()
expectTypeOf(tally.counters.tags.trending()).toEqualTypeOf<Promise<TrendingKey[]>>()
expectTypeOf(tally.counters.tags.trending({ halfLife: '6 hours', limit: 3, executor: kysely })).toEqualTypeOf<Promise<TrendingKey[]>>()
expectTypeOf(tally.counters.tags.trending({ baseline: { window, windows: 48, minCount: 3 }, where: { kind: 'a' } })).toEqualTypeOf<Promise<SpikingKey[]>>()
expectTypeOf(tally.counters.likes.get(1, { executor: transaction })).toEqualTypeOf<Promise<number>>()
expectTypeOf(tally.counters.own.getMany(['a'])).toEqualTypeOf<Promise<Map<string, number>>>()
expectTypeOf(tally.counters.own.getMany(['a'], { bigint: true })).toEqualTypeOf<Promise<Map<string, bigint>>>()
expectTypeOf(tally.counters.likes.get(1, {})).toEqualTypeOf<Promise<number>>()
expectTypeOf(tally.counters.likes.get(1, { fresh: false, bigint: false })).toEqualTypeOf<Promise<number>>()
expectTypeOf(tally.counters.likes.get(1, { fresh: true })).toEqualTypeOf<Promise<FreshCount>>()
expectTypeOf(tally.counters.likes.get(1, { fresh: true, bigint: false, executor: client })).toEqualTypeOf<Promise<FreshCount<number>>>()
expectTypeOf(tally.counters.likes.get(1, { fresh: true, bigint: true })).toEqualTypeOf<Promise<FreshCount<bigint>>>()
expectTypeOf(tally.counters.own.getMany(['a'], { fresh: true })).toEqualTypeOf<Promise<Map<string, FreshCount<number>>>>()
expectTypeOf(tally.counters.own.getMany(['a'], { fresh: true, bigint: true })).toEqualTypeOf<Promise<Map<string, FreshCount<bigint>>>>()
expectTypeOf((await tally.counters.likes.get(1, { fresh: true, bigint: true })).carried).toEqualTypeOf<bigint>()
// Options that are only known when it runs.
declare const some: { fresh: boolean }
declare const any: ReadOptions
expectTypeOf(tally.counters.likes.get(1, some)).toEqualTypeOf<Promise<number | FreshCount<number>>>()
expectTypeOf(tally.counters.likes.get(1, { bigint: some.fresh })).toEqualTypeOf<Promise<number | bigint>>()
expectTypeOf(tally.counters.likes.get(1, any)).toEqualTypeOf<Promise<number | bigint | FreshCount<number | bigint>>>()

for (const executor of [pool, client, kysely, transaction]) {
  expectTypeOf(tally.counters.pages.add(executor, '/home', 2n)).toEqualTypeOf<Promise<TransactionToken>>()
  expectTypeOf(tally.transactionToken(executor)).toEqualTypeOf<Promise<TransactionToken>>()
}
declare const token: TransactionToken
declare const signal: AbortSignal
expectTypeOf(tally.counters.likes.waitFor(token)).toEqualTypeOf<Promise<void>>()
expectTypeOf(tally.counters.likes.waitFor(token, { key: 1, timeoutMs: 100, signal })).toEqualTypeOf<Promise<void>>()
expectTypeOf(tally.counters.likes.audit({ keys: [1, 2], against: 'views' })).toEqualTypeOf<Promise<Measurement>>()
expectTypeOf(tally.counters.likes.audit({ sample: 100, signal, onProgress: ({ checkedKeys }) => void checkedKeys.toFixed() })).toEqualTypeOf<Promise<Measurement>>()
expectTypeOf(tally.counters.big.reconcile({ keys: ['1', 2, 3n], restart: true })).toEqualTypeOf<Promise<Measurement>>()
expectTypeOf(tally.counters.pages.reset('/home')).toEqualTypeOf<Promise<void>>()
expectTypeOf(tally.counters.pages.resetAll()).toEqualTypeOf<Promise<void>>()
// Where no DB type was given, any key will do.
expectTypeOf(tally.counter('x').reset).parameter(0).toEqualTypeOf<string | number | bigint>()
expectTypeOf(tally.counter<number>('x').waitFor).parameter(1).toEqualTypeOf<WaitOptions<number> | undefined>()

// @ts-expect-error -- a number is no key here
void tally.counters.pages.waitFor(token, { key: 1 })
// @ts-expect-error -- nor a string there
void tally.counters.likes.waitFor(token, { key: '1' })
// @ts-expect-error -- a token is text
void tally.counters.likes.waitFor(1)
// @ts-expect-error -- a string is no key
void tally.counters.likes.audit({ keys: ['1'] })
// @ts-expect-error -- a string is no key
void tally.counters.likes.reconcile({ keys: ['1'] })
// @ts-expect-error -- reconciling is against the source
void tally.counters.likes.reconcile({ against: 'views' })
// @ts-expect-error -- a string is no key
void tally.counters.likes.reset('1')
// @ts-expect-error -- not without a key: that is resetAll()
void tally.counters.pages.reset()
// @ts-expect-error -- no such option
void tally.counters.likes.get(1, { fesh: true })
// @ts-expect-error -- a stored count is just a number
void (await tally.counters.likes.get(1)).pending
// @ts-expect-error -- nor are there options that are neither on nor off
void tally.counters.likes.get(1, { fresh: 'yes' })

// @ts-expect-error -- a number is no key here
void tally.counters.tags.series(1, { width: window })
// @ts-expect-error -- of what width?
void tally.counters.tags.series('a', { from })
// @ts-expect-error -- a window has a beginning
void tally.counters.tags.top({ window: { to: from } })
// @ts-expect-error -- nothing is equal to an object
void tally.counters.tags.top({ where: { at: from } })
// @ts-expect-error -- by a half-life or against a baseline
void tally.counters.tags.trending({ halfLife: '6 hours', baseline: { window } })
// @ts-expect-error -- a baseline of what?
void tally.counters.tags.trending({ baseline: { windows: 3 } })
// @ts-expect-error -- scores have no bigints
void tally.counters.tags.trending({ bigint: true })

// @ts-expect-error -- a number is no key here
void tally.counters.pages.get(1)
// @ts-expect-error -- nor a string there
void tally.counters.likes.get('1')
// @ts-expect-error -- no such counter
void tally.counters.other
// @ts-expect-error -- not an executor
void tally.counters.pages.add({}, '/home')
// @ts-expect-error -- a client has no connections of its own
createTally({ pool: client })

// @ts-expect-error -- no such table
define({ a: { source: { table: 'like', key: 'post_id' } } })
// @ts-expect-error -- no such column
define({ a: { source: { table: 'likes', key: 'post' } } })
// @ts-expect-error -- a column of another table
define({ a: { source: { table: 'likes', key: 'kind' } } })
// @ts-expect-error -- a date cannot be a key
define({ a: { source: { table: 'likes', key: 'at' } } })
// @ts-expect-error -- nor can a boolean
define({ a: { target: { table: 'posts', key: 'open', column: 'like_count' } } })
// @ts-expect-error -- no such column for the time
define({ a: { source: { table: 'tag_uses', key: 'tag', time: 'at' } } })
// @ts-expect-error -- a number is no time
define({ a: { source: { table: 'posts', key: 'id', time: 'views' } } })
// @ts-expect-error -- nor can a boolean be one
define({ a: { source: { table: 'tag_uses', key: 'tag', time: 'done' } } })
// @ts-expect-error -- how long are they kept?
define({ a: { buckets: [{ width: '1 hour' }] } })
// @ts-expect-error -- intervals are in words
define({ a: { trending: [{ halfLife: 3600 }] } })
// @ts-expect-error -- no number
define({ a: { source: { table: 'likes', key: 'post_id' }, target: { table: 'posts', key: 'id', column: 'title' } } })
// @ts-expect-error -- no number
define({ a: { target: { table: 'posts', key: 'id', column: 'at' } } })
// @ts-expect-error -- no number
define({ a: { target: { table: 'posts', key: 'id', column: 'meta' } } })
// @ts-expect-error -- no number
define({ a: { target: { table: 'posts', key: 'id', column: 'open' } } })
// @ts-expect-error -- a number, but not to be updated
define({ a: { target: { table: 'posts', key: 'id', column: 'fixed' } } })
// @ts-expect-error -- no such target table
define({ a: { target: { table: 'post', key: 'id', column: 'like_count' } } })
// @ts-expect-error -- the column is missing
define({ a: { target: { table: 'posts', key: 'id' } } })
// @ts-expect-error -- no such action
define({ a: { onMissing: 'ignore' } })
// @ts-expect-error -- no such option
define({ a: { onMising: 'drop' } })

expectTypeOf(createTally({ pool }).counters).toEqualTypeOf<Record<never, never>>()
