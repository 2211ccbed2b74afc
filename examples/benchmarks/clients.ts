import { setTimeout as sleep } from 'node:timers/promises'

import pg from 'pg'

import type { Bench } from './bench.ts'

export const connections = 16

/** One act of a client; returns how many likes and unlikes that was. */
export type Act = (client: pg.Client) => Promise<number>

export interface Load {
  /** Likes and unlikes that went through. */
  done: number
  seconds: number
}

let users = 0

/** A user who has liked nothing yet. */
export const newUser = () => ++users

/** Each connection acts again as soon as its last act is through. */
export async function atFullSpeed(bench: Bench, act: Act, seconds: number = bench.seconds, onDone: (done: number) => void = () => {}): Promise<Load> {
  return withClients(bench, async (clients) => {
    const began = performance.now()
    const end = began + seconds * 1000
    let done = 0
    const whileTime = async (client: pg.Client) => {
      while (performance.now() < end) {
        bench.signal.throwIfAborted()
        const count = await act(client)
        done += count
        onDone(count)
      }
    }
    await Promise.all(clients.map(whileTime))
    return { done, seconds: (performance.now() - began) / 1000 }
  })
}

/** Acts on time, not as soon as the last one is through, so a slow moment is not hidden by sending less; until `stopping` is aborted. */
export async function paced(bench: Bench, act: Act, perSecond: number, stopping: AbortSignal): Promise<Load> {
  return withClients(bench, async (clients) => {
    const began = performance.now()
    let begun = 0
    let done = 0
    const inTurn = async (client: pg.Client) => {
      while (!stopping.aborted) {
        bench.signal.throwIfAborted()
        const early = began + (begun++ / perSecond) * 1000 - performance.now()
        if (early > 0) await sleep(early)
        const count = await act(client)
        done += count
      }
    }
    await Promise.all(clients.map(inTurn))
    return { done, seconds: (performance.now() - began) / 1000 }
  })
}

/** For whoever wants a client: one whose statements are sent by `send`, in another form or not at all. */
export const sendingBy = (send: (text: string, values: unknown[]) => Promise<unknown>) => ({ query: send }) as unknown as pg.Client

/** Runs one statement that only prepares something, without waiting for each of its commits. */
export async function prepare(bench: Bench, statement: string): Promise<void> {
  await withClients(
    bench,
    async ([client]) => {
      await client?.query('set synchronous_commit = off')
      await client?.query(statement)
    },
    1,
  )
  await bench.pool.query('checkpoint')
}

export async function withClients<T>({ connectionString }: Bench, work: (clients: pg.Client[]) => Promise<T>, count: number = connections): Promise<T> {
  const clients = Array.from({ length: count }, () => new pg.Client({ connectionString, application_name: 'likes' }))
  // A connection that dies is told of by the next statement.
  for (const client of clients) client.on('error', () => {})
  try {
    await Promise.all(clients.map((client) => client.connect()))
    return await work(clients)
  } finally {
    await Promise.all(clients.map((client) => client.end()))
  }
}
