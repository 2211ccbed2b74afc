import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'

import { expect, test } from 'vitest'

import { hasRabbitmq, rabbitmqMissing } from '../examples/support/rabbitmq-server.ts'
import { waitFor } from './support/database.ts'
import { findRedisServer, redisMissing } from './support/redis.ts'

const timeout = 180_000

/** As a user starts it who has no server. */
function start(...args: string[]) {
  const { DATABASE_URL: _, PGHOST: _host, PGPORT: _port, PGDATABASE: _database, ...env } = process.env
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
  let printed = ''
  child.stdout.on('data', (chunk: Buffer) => (printed += chunk.toString()))
  const errors = text(child.stderr)
  const ended = once(child, 'close').then(async ([exitCode]) => ({ exitCode: exitCode as number, stderr: await errors }))
  return { child, ended, printed: () => printed, [Symbol.dispose]: () => void child.kill('SIGKILL') }
}

test('the backend passes its own test', { timeout }, async () => {
  using backend = start('examples/http/main.ts', '--self-test')
  expect(await backend.ended).toEqual({ exitCode: 0, stderr: '' })
  expect(backend.printed()).toMatch(/^The self-test of http:\/\/127\.0\.0\.1:\d+ has passed$/m)
})

test('the backend says where it is, and ends with Ctrl-C', { timeout }, async () => {
  using backend = start('examples/http/main.ts')
  const [, url] = await waitFor(async () => /curl (http\S+\/posts\/1) /.exec(backend.printed()) ?? undefined, { what: 'its URL', timeoutMs: 120_000 })
  expect(await (await fetch(url ?? '')).json()).toMatchObject({ id: 1, like_count: 0 })
  backend.child.kill('SIGINT')
  expect(await backend.ended).toEqual({ exitCode: 0, stderr: '' })
})

test('pg-boss is given a job for each milestone', { timeout }, async () => {
  using example = start('examples/pg-boss.ts')
  expect(await example.ended).toEqual({ exitCode: 0, stderr: '' })
  const lines = example.printed().trimEnd().split('\n')
  expect(lines.filter((line) => line.startsWith('Post ')).toSorted()).toEqual(
    ['1 has 10', '2 has 10', '2 has 100', '3 has 10', '3 has 100', '3 has 1000'].map((reached) => `Post ${reached} likes: congratulations!`),
  )
  expect(lines.filter((line) => line.startsWith('Scheduled: pgtally-'))).toHaveLength(2)
})

test('Redis has the counts', { timeout }, async (context) => {
  if ((await findRedisServer()) === undefined) context.skip(redisMissing)
  using example = start('examples/redis.ts')
  expect(await example.ended).toEqual({ exitCode: 0, stderr: '' })
  expect(example.printed()).toMatch(/^In Redis: example \d+:post_likes:1 = \d+:100 \(version:count\)$/m)
})

test('RabbitMQ is given each event, across a restart', { timeout }, async (context) => {
  if (!hasRabbitmq()) context.skip(rabbitmqMissing)
  using example = start('examples/rabbitmq.ts')
  expect(await example.ended).toEqual({ exitCode: 0, stderr: '' })
  expect(example.printed()).toMatch(/^\d+ messages for 510 events; 510 were written$/m)
  for (const post of [1, 2]) expect(example.printed()).toContain(`Post ${post}: 245 likes in PostgreSQL, 245 by the messages of RabbitMQ\n`)
})

test('the soak run is exact, whatever faults it injects', { timeout }, async () => {
  using soak = start('examples/soak/main.ts', '--minutes', '0.25', '--rate', '300', '--fault-every', '2')
  expect(await soak.ended).toMatchObject({ exitCode: 0 })
  expect(soak.printed()).toMatch(/\d faults/)
  expect(soak.printed()).toContain('Every count is exact.')
})
