// Checked by `npm run typecheck`; nothing here runs.
import type pg from 'pg'
import { expectTypeOf } from 'vitest'

import { createTally, type BufferedCounter, type Writer } from '../../src/index.ts'

declare const pool: pg.Pool
const tally = createTally({ pool })
const pair = { table: 'likes', key: 'post_id', member: 'user_id' }

const likes = tally.writer<number, string>(pair)
expectTypeOf(likes).toEqualTypeOf<Writer<number, string>>()
expectTypeOf(likes.add(1, 'a')).toEqualTypeOf<Promise<boolean>>()
expectTypeOf(likes.remove(1, 'a')).toEqualTypeOf<Promise<boolean>>()
// Where no types were given, any key will do.
const any = tally.writer(pair)
expectTypeOf(any.remove).parameters.toEqualTypeOf<[key: string | number | bigint, member: string | number | bigint]>()
void any.add(1n, '2')

const reactions = tally.writer({ ...pair, columns: ['emoji', 'at'], maxWaiting: Number.POSITIVE_INFINITY, signal: undefined })
expectTypeOf(reactions).toEqualTypeOf<Writer<string | number | bigint, string | number | bigint, 'emoji' | 'at'>>()
void reactions.add(1, 2, { emoji: null, at: new Date() })
void tally.writer<number, number, 'emoji'>({ ...pair, columns: ['emoji'] }).add(1, 2, { emoji: ['🎉'] })

expectTypeOf(tally.buffered<string>('views')).toEqualTypeOf<BufferedCounter<string>>()
expectTypeOf(tally.buffered<string>('views', { onError: (error) => void error }).add).parameter(1).toEqualTypeOf<number | bigint | undefined>()

// @ts-expect-error -- a string is no key here
void likes.add('1', 'a')
// @ts-expect-error -- nor a number a member
void likes.remove(1, 2)
// @ts-expect-error -- there are no other columns
void likes.add(1, 'a', { emoji: 'x' })
// @ts-expect-error -- every column has a value
void reactions.add(1, 2)
// @ts-expect-error -- every single one
void reactions.add(1, 2, { emoji: 'x' })
// @ts-expect-error -- and undefined is none
void reactions.add(1, 2, { emoji: undefined, at: null })
// @ts-expect-error -- there is no such column
void reactions.add(1, 2, { emoji: 'x', at: null, kind: 1 })
// @ts-expect-error -- a removal has no values
void reactions.remove(1, 2, { emoji: 'x', at: null })
// @ts-expect-error -- the member is missing
tally.writer({ table: 'likes', key: 'post_id' })
// @ts-expect-error -- no such option
tally.writer({ ...pair, maxSize: 1 })
// @ts-expect-error -- a number is no key here
tally.buffered<string>('views').add(1)
