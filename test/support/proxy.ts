import { once } from 'node:events'
import net from 'node:net'

export interface Proxy extends AsyncDisposable {
  /** The database's URL, by way of the proxy. */
  readonly connectionString: string
  /** The next message with `text` in it reaches the server; when that answers, the connection is cut and the answer lost. Resolves then. */
  loseAnswer(text: string): Promise<void>
  /**
   * The next message with `text` in it does not reach the server: the client's connection is cut. The server notices nothing until `release()`
   * of the result is called.
   */
  loseMessage(text: string): Promise<{ release: () => void }>
}

/** A proxy before the server, which cuts a connection at a chosen message. */
export async function startProxy(connectionString: string): Promise<Proxy> {
  const target = new URL(connectionString)
  const sockets = new Set<net.Socket>()
  let watched: { text: string; isAnswer: boolean; resolve: (result: { release: () => void }) => void } | undefined
  const server = net.createServer((client) => {
    const upstream = net.connect(Number(target.port), target.hostname)
    let isCutByAnswer: (() => void) | undefined
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => {}).on('close', () => sockets.delete(socket))
    }
    const release = () => upstream.destroy()
    client.on('data', (data) => {
      if (watched === undefined || !data.includes(watched.text)) {
        upstream.write(data)
        return
      }
      const { isAnswer, resolve } = watched
      watched = undefined
      if (isAnswer) {
        isCutByAnswer = () => resolve({ release })
        upstream.write(data)
      } else {
        client.removeAllListeners('end').destroy()
        resolve({ release })
      }
    })
    upstream.on('data', (data) => {
      if (isCutByAnswer === undefined) {
        client.write(data)
        return
      }
      client.destroy()
      upstream.destroy()
      isCutByAnswer()
    })
    client.on('end', () => upstream.end())
    upstream.on('close', () => client.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = new URL(connectionString)
  url.hostname = '127.0.0.1'
  url.port = String((server.address() as net.AddressInfo).port)
  const watch = (text: string, isAnswer: boolean) =>
    new Promise<{ release: () => void }>((resolve) => {
      watched = { text, isAnswer, resolve }
    })
  return {
    connectionString: url.href,
    loseAnswer: async (text) => {
      await watch(text, true)
    },
    loseMessage: (text) => watch(text, false),
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}
