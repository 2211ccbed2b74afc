import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'

import { createClient } from 'redis'

import { waitFor } from './database.ts'
import { findProgram, freePort } from './programs.ts'

export const redisMissing = 'needs redis-server: apt-get install redis-server'

/** Undefined when there is none on the path: then a test skips itself with `redisMissing`. */
export async function findRedisServer(): Promise<string | undefined> {
  return findProgram('redis-server')
}

type TestClient = ReturnType<typeof createTestClient>

const createTestClient = (port: number) => createClient({ url: `redis://127.0.0.1:${port}`, socket: { reconnectStrategy: 20 } }).on('error', () => {})

/** A Redis of one test's own, which may be stopped and started again on the same port. Keeps nothing on disk. */
export interface TestRedis extends AsyncDisposable {
  /** Connected, and closed with it. */
  connect(): Promise<TestClient>
  /** At once, as by SIGKILL. */
  stop(): Promise<void>
  start(): Promise<void>
  /** It takes connections and commands, and answers nothing. */
  freeze(): void
  thaw(): void
}

export async function startTestRedis(program: string): Promise<TestRedis> {
  const port = await freePort()
  const clients: TestClient[] = []
  let child: ChildProcess | undefined
  const start = async () => {
    child = spawn(program, ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'], { stdio: 'ignore' })
    const ended = once(child, 'exit').then(() => {
      throw new Error(`redis-server on port ${port} has ended`)
    })
    await Promise.race([waitFor(() => answers(port), { what: 'redis-server' }), ended])
    ended.catch(() => {})
  }
  const stop = async () => {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const exit = once(child, 'exit')
    child.kill('SIGKILL')
    await exit
  }
  await start()
  return {
    connect: async () => {
      const client = createTestClient(port)
      clients.push(client)
      await client.connect()
      return client
    },
    start,
    stop,
    freeze: () => void child?.kill('SIGSTOP'),
    thaw: () => void child?.kill('SIGCONT'),
    [Symbol.asyncDispose]: async () => {
      for (const client of clients) client.destroy()
      await stop()
    },
  }
}

async function answers(port: number): Promise<boolean> {
  const socket = net.connect(port, '127.0.0.1')
  try {
    socket.write('PING\r\n')
    const [answer] = (await once(socket, 'data')) as [Buffer]
    return answer.toString().startsWith('+PONG')
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}
