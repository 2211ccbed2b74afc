import { bareStatements, statements, storedInPosts } from './method.ts'
import type { Method } from './method.ts'

/** The fairest form: no second round trip while the row is locked. It stays locked until the commit, however it is written. */
export const updateInStatement: Method = {
  name: 'UPDATE in the same statement',
  async open(_bench, tables) {
    const { posts } = tables
    // Many are locked in order, without which two such statements deadlock.
    const many = `, sums as (select post_id, count(*) as n from changed group by 1),
      locked as (select id from ${posts} where id in (select post_id from sums) order by id for no key update)
      update ${posts} p set like_count = like_count + n from locked join sums on post_id = locked.id where p.id = locked.id`
    const one = (delta: number) => `update ${posts} set like_count = like_count + ${delta} from changed where id = post_id`
    return { ...statements(tables, one, many), stored: storedInPosts(tables) }
  },
}

/** As it is mostly written. */
export const updateInTransaction: Method = {
  name: 'UPDATE in the same transaction',
  async open(_bench, tables) {
    const { like, unlike } = bareStatements(tables)
    const inTransaction =
      (change: typeof like, delta: string): typeof like =>
      async (client, post, user) => {
        await client.query('begin')
        await change(client, post, user)
        await client.query(`update ${tables.posts} set like_count = like_count ${delta} where id = $1`, [post])
        await client.query('commit')
      }
    return { like: inTransaction(like, '+ 1'), unlike: inTransaction(unlike, '- 1'), stored: storedInPosts(tables) }
  },
}
