// A relay: each like becomes a message in RabbitMQ, with the event's id as message id. Run: node examples/rabbitmq.ts
//
// At least once: a crash between RabbitMQ's confirmation and the end of the batch repeats messages, under the same ids; whoever
// receives them passes over ids it has seen. None is lost, as when RabbitMQ is restarted here: the batch is given again.

import { setTimeout as sleep } from 'node:timers/promises'

import { connect } from 'amqplib'
import pg from 'pg'

import { startEmbeddedServer } from '../src/demo/embedded-server.ts'
import { createTally, defineConsumer, defineCounters } from '../src/index.ts'
import { hasRabbitmq, rabbitmqMissing, startRabbitmq } from './support/rabbitmq-server.ts'

if (!hasRabbitmq()) {
  console.log(`Skipped: the example ${rabbitmqMissing}`)
  process.exit()
}

await using server = await startEmbeddedServer()
await using rabbitmq = await startRabbitmq()
const pool = new pg.Pool({ connectionString: server.connectionString })
await pool.query('create table posts (id int primary key, like_count int not null default 0); create table likes (post_id int not null references posts, user_id int not null); insert into posts values (1), (2)')

const counters = defineCounters()({
  post_likes: { source: { table: 'likes', key: 'post_id', data: ['user_id'] }, target: { table: 'posts', key: 'id', column: 'like_count' } },
})
const tally = createTally({ pool, counters })
await tally.install()

// Connects again by itself.
const connection = await connect(rabbitmq.url, { recovery: true })
connection.on('error', (error) => console.log(`RabbitMQ: ${error.message}`))

const relay = defineConsumer({
  queue: 'post_likes',
  name: 'rabbitmq',
  mode: 'at-least-once',
  maxEvents: 20,
  handler: async (batch) => {
    const channel = await connection.createConfirmChannel()
    // Its errors are those of the confirmations.
    channel.on('error', () => {})
    await channel.assertQueue('likes', { durable: true })
    // RabbitMQ confirms what it cannot route as well, and throws it away.
    let unroutable = 0
    channel.on('return', () => unroutable++)
    for await (const page of batch.pages()) {
      for (const { id, time, key, delta, data } of page) {
        const content = Buffer.from(JSON.stringify({ post: key, delta, ...(data as { user_id: number }) }))
        channel.publish('', 'likes', content, { messageId: id, timestamp: Math.floor(time.getTime() / 1000), contentType: 'application/json', persistent: true, mandatory: true })
      }
      await channel.waitForConfirms()
      if (unroutable > 0) throw new Error(`RabbitMQ has no queue for ${unroutable} messages`)
    }
    await channel.close()
  },
})

const pendingMessages = async () => (await tally.status()).consumers.find(({ name }) => name === 'rabbitmq')?.pendingEvents

await tally.queue('post_likes').register('rabbitmq')
const consumer = tally.consumer(relay)
const likes = 500
for (let user = 1; user <= likes; user++) {
  await pool.query('insert into likes values (1 + $1 % 2, $1)', [user])
  if (user === likes / 2) rabbitmq.restart()
}
await pool.query('delete from likes where user_id <= 10')
while ((await pendingMessages()) !== 0) await sleep(50)

const receiver = await connection.createChannel()
const counts = new Map<string, number>()
const ids = new Set<string>()
let messages = 0
for (let message = await receiver.get('likes', { noAck: true }); message !== false; message = await receiver.get('likes', { noAck: true })) {
  messages++
  const id = message.properties.messageId as string
  if (ids.has(id)) continue
  ids.add(id)
  const { post, delta } = JSON.parse(message.content.toString()) as { post: string; delta: number }
  counts.set(post, (counts.get(post) ?? 0) + delta)
}
console.log(`${messages} messages for ${ids.size} events; ${likes + 10} were written`)
await tally.drain()
for (const [post, count] of await tally.counters.post_likes.getMany([1, 2])) {
  console.log(`Post ${post}: ${count} likes in PostgreSQL, ${counts.get(String(post))} by the messages of RabbitMQ`)
}
await connection.close()
await consumer.stop()
await pool.end()
