import { beforeAll, expect, test } from 'vitest'

import type { Tally } from '../src/index.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'
import { applyAll, createBlog, installed, stored, violations, type Blog } from './support/fixtures.ts'

let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  return db.drop
})

async function createBlogWithData(source: { where?: string; sum?: string } = {}): Promise<Blog> {
  const blog = await createBlog(db, tally, { source: { ...source, data: ['kind', 'weight'] } })
  await tally.queue(blog.counter).register('reader')
  return blog
}

/** What the consumer is given since the last time: key, delta and data of each event. */
async function given({ counter }: Blog): Promise<string[]> {
  const { rows } = await db.pool.query<{ batch: string | null }>(`select pgtally.next_batch($1, 'reader') as batch`, [counter])
  const batch = rows[0]?.batch
  if (batch === null || batch === undefined) return []
  const events = await db.pool.query<{ event: string }>(`select concat_ws(' ', ev_key, ev_delta, ev_data ->> 'kind', ev_data ->> 'weight') as event from pgtally.get_batch_events($1)`, [batch])
  await db.pool.query('select pgtally.finish_batch($1)', [batch])
  return events.rows.map(({ event }) => event).toSorted()
}

test('each row is an event of its own with its columns; the counts are as without', async () => {
  const blog = await createBlogWithData()
  await db.pool.query(`insert into ${blog.likes} (post_id, kind, weight) values (1, 'like', 1), (1, 'like', 1), (2, null, 5)`)
  expect(await given(blog)).toEqual(['1 1 like 1', '1 1 like 1', '2 1 5'])
  await db.pool.query(`update ${blog.likes} set kind = 'love' where post_id = 2`)
  expect(await given(blog)).toEqual(['2 -1 5', '2 1 love 5'])
  await db.pool.query(`update ${blog.likes} set post_id = 3 where post_id = 2; update ${blog.likes} set weight = weight`)
  expect(await given(blog)).toEqual(['2 -1 love 5', '3 1 love 5'])
  await db.pool.query(`delete from ${blog.likes} where post_id = 1`)
  expect(await given(blog)).toEqual(['1 -1 like 1', '1 -1 like 1'])
  await db.pool.query(`insert into ${blog.likes} (post_id, kind) values (4, 'wow'), (4, 'wow'); truncate ${blog.likes}`)
  expect(await given(blog)).toEqual(['3 -1 love 5', '4 -1 wow 1', '4 -1 wow 1', '4 1 wow 1', '4 1 wow 1'])
  expect(await violations(db, blog.counter)).toEqual([])
  await applyAll(db.pool, blog.counter)
  expect(await stored(db.pool, blog)).toEqual({})
})

test('goes with a condition and a sum', async () => {
  const blog = await createBlogWithData({ where: `kind = 'like'`, sum: 'weight' })
  await db.pool.query(`insert into ${blog.likes} (post_id, kind, weight) values (1, 'like', 3), (1, 'view', 9), (2, 'like', 0), (2, 'like', null), (null, 'like', 4)`)
  await db.pool.query(`update ${blog.likes} set kind = 'like' where kind = 'view'`)
  expect(await given(blog)).toEqual(['1 3 like 3', '1 9 like 9'])
  expect(await violations(db, blog.counter)).toEqual([])
  await applyAll(db.pool, blog.counter)
  expect(await stored(db.pool, blog)).toEqual({ 1: 12 })
})

test('is part of the definition', async () => {
  const { posts, likes, counter } = await createBlogWithData()
  const definition = (data?: readonly string[]) => ({ source: { table: likes, key: 'post_id', ...(data && { data }) }, target: { table: posts, key: 'id', column: 'like_count' } })
  expect(await tally.createCounter(counter, definition(['kind', 'weight']))).toBe(false)
  await expect(tally.createCounter(counter, definition())).rejects.toMatchObject({ code: 'DEFINITION_CONFLICT', message: expect.stringContaining('data is ["kind", "weight"], not none') })
  await expect(tally.createCounter('other', definition(['nothing']))).rejects.toMatchObject({ code: 'INVALID_DEFINITION', message: expect.stringContaining('no column "nothing"') })
  await expect(tally.createCounter('other', definition(['kind', 'kind']))).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  await expect(tally.createCounter('other', definition([]))).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
  await expect(tally.createCounter('other', { keyType: 'text', source: undefined, queue: counter })).rejects.toMatchObject({ code: 'INVALID_DEFINITION' })
})
