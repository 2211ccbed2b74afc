import fastify from 'fastify'
import type { FastifyInstance } from 'fastify'
import type { Kysely } from 'kysely'

import type { Tally } from '../../src/index.ts'
import type { Database } from './database.ts'

interface Like {
  Params: { post: number; user: number }
}

interface One {
  Params: { id: number }
}

const integers = (...names: string[]) => ({ params: { type: 'object', properties: Object.fromEntries(names.map((name) => [name, { type: 'integer' }])) } })
const noSuchRow = '23503'

/** Likes are written as if there were no counter: neither route below knows of it. */
export function createApp(database: Kysely<Database>, tally: Tally<{ post_likes: number }>): FastifyInstance {
  const app = fastify()

  app.put<Like>('/posts/:post/likes/:user', { schema: integers('post', 'user') }, async ({ params: { post, user } }, reply) => {
    try {
      await database.insertInto('likes').values({ post_id: post, user_id: user }).onConflict((conflict) => conflict.doNothing()).execute()
      return await reply.code(204).send()
    } catch (error) {
      if ((error as { code?: string }).code !== noSuchRow) throw error
      return reply.code(404).send({ error: 'No such post or user' })
    }
  })

  app.delete<Like>('/posts/:post/likes/:user', { schema: integers('post', 'user') }, async ({ params: { post, user } }, reply) => {
    await database.deleteFrom('likes').where('post_id', '=', post).where('user_id', '=', user).execute()
    return reply.code(204).send()
  })

  // For pages that show many posts: a column like any other, some milliseconds behind.
  app.get<One>('/posts/:id', { schema: integers('id') }, async ({ params: { id } }, reply) => {
    const post = await database.selectFrom('posts').select(['id', 'title', 'like_count']).where('id', '=', id).executeTakeFirst()
    return post ?? reply.code(404).send({ error: 'No such post' })
  })

  // Exact at this moment, for whoever has just clicked.
  app.get<One>('/posts/:id/likes', { schema: integers('id') }, ({ params: { id } }) => tally.counters.post_likes.get(id, { fresh: true }))

  app.get<One>('/users/:id/notifications', { schema: integers('id') }, async ({ params: { id } }) => {
    const notifications = await database
      .selectFrom('notifications')
      .innerJoin('users', 'users.id', 'notifications.liked_by')
      .innerJoin('posts', 'posts.id', 'notifications.post_id')
      .select(['users.name', 'posts.title'])
      .where('notifications.user_id', '=', id)
      .orderBy('notifications.id')
      .execute()
    return notifications.map(({ name, title }) => `${name} likes your post "${title}"`)
  })

  return app
}
