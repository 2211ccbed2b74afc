import { defineConsumer } from '../../src/index.ts'

/** Keeps a count of its own of every post, each batch in the transaction that finishes it. */
export default [
  defineConsumer({
    queue: 'post_likes',
    name: 'soak',
    maxWaitMs: 1000,
    minEvents: 10_000,
    handler: async (batch) => {
      const deltas = await batch.deltas()
      await batch.client.query(
        `insert into consumed select * from unnest($1::bigint[], $2::bigint[])
         on conflict (post_id) do update set likes = consumed.likes + excluded.likes`,
        [deltas.map(({ key }) => key), deltas.map(({ delta }) => String(delta))],
      )
    },
  }),
]
