import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import pg from 'pg'
import { expect } from 'vitest'

import type { Tally } from '../../src/index.ts'
import { Random } from '../chaos/random.ts'
import { waitFor, type TestDatabase } from './database.ts'
import { violations, type Blog } from './fixtures.ts'

/** Another one for each run, or that of a run to be repeated as far as the scheduler allows. */
export const seed = Number(process.env['PGTALLY_TEST_SEED'] ?? Math.floor(Math.random() * 2 ** 31))

/** Work that goes on beside a test until it is stopped. */
export interface Background extends AsyncDisposable {
  readonly rounds: number
  /** Resolves after the round in hand; throws what a round has thrown. May be called again. */
  stop(): Promise<void>
}

/** Does `work` again and again. */
export function beside(work: () => Promise<unknown>): Background {
  const stopping = new AbortController()
  let rounds = 0
  const run = async () => {
    while (!stopping.signal.aborted) {
      await work()
      rounds++
      // Whatever else this process does has its turn.
      await sleep(1)
    }
  }
  const ended = run()
  ended.catch(() => {})
  const stop = async () => {
    stopping.abort()
    await ended
  }
  return {
    get rounds() {
      return rounds
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

export interface StormOptions {
  /** The posts are 1 to this; default 10. */
  posts?: number
  /** Connections; default 3. */
  writers?: number
  /** Connect again when the connection is lost. What was under way has committed or has not. */
  reconnecting?: boolean
}

type Act = (client: pg.Client, blog: Blog, random: Random, posts: number) => Promise<unknown>

// Rows that another writer has are left alone, so that writers never wait for one another, let alone in a circle.
const someLikes = ({ likes }: Blog) => `id in (select id from ${likes} where post_id = $1 order by id limit 3 for update skip locked)`
const acts: [Act, ...Act[]] = [
  (client, { likes }, random, posts) =>
    client.query(`insert into ${likes} (post_id, kind, weight) select unnest($1::bigint[]), $2, $3`, [
      Array.from({ length: random.upTo(6) }, () => random.upTo(posts)),
      random.pick(['like', 'view']),
      random.upTo(5),
    ]),
  (client, blog, random, posts) => client.query(`delete from ${blog.likes} where ${someLikes(blog)}`, [random.upTo(posts)]),
  (client, blog, random, posts) => client.query(`update ${blog.likes} set post_id = $2 where ${someLikes(blog)}`, [random.upTo(posts), random.upTo(posts)]),
  (client, blog, random, posts) => client.query(`update ${blog.likes} set kind = $2, weight = $3 where ${someLikes(blog)}`, [random.upTo(posts), random.pick(['like', 'view']), random.upTo(5)]),
]

async function transaction(client: pg.Client, blog: Blog, random: Random, posts: number): Promise<void> {
  await client.query('begin')
  const count = random.upTo(3)
  for (let n = 0; n < count; n++) {
    const nested = random.next() < 0.2
    if (nested) await client.query('savepoint nested')
    // Likes come in faster than they go.
    await (random.next() < 0.4 ? acts[0] : random.pick(acts))(client, blog, random, posts)
    if (nested) await client.query(random.next() < 0.5 ? 'rollback to nested' : 'release nested')
  }
  await client.query(random.next() < 0.1 ? 'rollback' : 'commit')
}

/** Likes, unlikes, moves and changes likes of random posts, on connections of its own. */
export function storm(db: TestDatabase, blog: Blog, { posts = 10, writers = 3, reconnecting = false }: StormOptions = {}): Background {
  const random = new Random(seed)
  const running = Array.from({ length: writers }, () => {
    const own = random.fork()
    let client: pg.Client | undefined
    const connected = async () => {
      if (client !== undefined) return client
      client = new pg.Client({ connectionString: db.connectionString, application_name: 'storm' })
      client.on('error', () => {})
      await client.connect()
      return client
    }
    const writer = beside(async () => {
      try {
        await transaction(await connected(), blog, own, posts)
      } catch (error) {
        await client?.end().catch(() => {})
        client = undefined
        if (!reconnecting) throw error
        await sleep(10)
      }
    })
    const stop = async () => {
      try {
        await writer.stop()
      } finally {
        await client?.end().catch(() => {})
        client = undefined
      }
    }
    return { writer, stop }
  })
  const stop = async () => {
    const ended = await Promise.allSettled(running.map((one) => one.stop()))
    for (const result of ended) if (result.status === 'rejected') throw result.reason
  }
  return {
    get rounds() {
      return running.reduce((sum, { writer }) => sum + writer.rounds, 0)
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

export interface Command extends AsyncDisposable {
  readonly child: ChildProcess
  readonly output: { stdout: string; stderr: string }
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }>
  said(what: string): Promise<unknown>
  /** SIGKILL; resolves when the process is gone. */
  kill(): Promise<void>
}

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))

/** A process of the command line; killed when it is disposed of. */
export function startCommand(connectionString: string, args: readonly string[], execArgv: readonly string[] = []): Command {
  const child = spawn(process.execPath, [...execArgv, main, ...args], { env: { ...process.env, DATABASE_URL: connectionString }, stdio: ['ignore', 'pipe', 'pipe'] })
  const output = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output.stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output.stderr += text))
  const ended = once(child, 'close').then(([code, signal]) => ({ code: code as number | null, signal: signal as NodeJS.Signals | null, ...output }))
  const kill = async () => {
    child.kill('SIGKILL')
    await ended
  }
  const said = (what: string) => waitFor(async () => output.stdout.includes(what), { what: `"${what}" from ${args.join(' ')}: ${output.stderr}` })
  return { child, output, ended, said, kill, [Symbol.asyncDispose]: kill }
}

/** With everything applied nothing drifts, by the engine's audit and by formulas that it does not use. */
export async function expectExact(db: TestDatabase, tally: Tally, blog: Blog): Promise<void> {
  expect(await tally.drain()).toMatchObject({ failed: [] })
  expect(await tally.counter(blog.counter).audit()).toMatchObject({ driftingKeys: 0, drifts: [] })
  expect(await violations(db, blog.counter)).toEqual([])
  const wrong = await db.pool.query(`
    select p.id, p.like_count, count(l.*) as likes from ${blog.posts} p left join ${blog.likes} l on l.post_id = p.id
    group by p.id having p.like_count <> count(l.*)`)
  expect(wrong.rows).toEqual([])
}
