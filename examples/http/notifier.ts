import { z } from 'zod'

import { defineConsumer } from '../../src/index.ts'

/** Tells authors who likes their posts. In the batch's transaction: whatever crashes, each like gives one notification. */
export const notifier = defineConsumer({
  queue: 'post_likes',
  name: 'notifier',
  schema: z.object({ user_id: z.number() }),
  handler: async (batch) => {
    for await (const page of batch.pages()) {
      const likes = page.filter(({ delta }) => delta > 0)
      // Nobody hears twice of one who unlikes and likes again, or of likes of their own. A post that is gone has no author.
      await batch.client.query(
        `insert into notifications (user_id, post_id, liked_by)
         select posts.author_id, posts.id, users.id
         from unnest($1::int[], $2::int[]) liked (post_id, user_id) join posts on posts.id = liked.post_id join users on users.id = liked.user_id
         where posts.author_id <> users.id
         on conflict do nothing`,
        [likes.map(({ key }) => key), likes.map(({ data }) => data.user_id)],
      )
    }
  },
})
