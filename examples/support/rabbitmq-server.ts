import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import { connect } from 'amqplib'

export const rabbitmqMissing = 'needs RabbitMQ: apt-get install rabbitmq-server (nothing of it needs to run)'

export interface RabbitmqServer extends AsyncDisposable {
  readonly url: string
  /** Does not wait until it is back. What is persistent is still there then. */
  restart(): void
}

/** Not what is on the PATH: that runs it as a user of its own, with the system's configuration. */
const program = '/usr/lib/rabbitmq/bin/rabbitmq-server'

export const hasRabbitmq = () => existsSync(program)

// Each line on its standard input is a restart. It ends with its standard input, and so with the process that started it, in whatever way that ends.
const script = `
  start() { "$0" > "$HOME/server.log" 2>&1 & server=$!; }
  stop() { kill $server; wait $server; }
  epmd & epmd=$!
  start
  while read -r line; do stop; start; done
  stop
  kill $epmd; wait $epmd
  rm -rf "$HOME"`

/** A RabbitMQ of its own, with ports, name, cookie and directories that no other has, which leaves nothing behind. */
export async function startRabbitmq(): Promise<RabbitmqServer> {
  const directory = await mkdtemp(path.join(tmpdir(), 'pgtally-rabbitmq-'))
  const [port, distributionPort, epmdPort] = await freePorts(3)
  const plugins = path.join(directory, 'enabled_plugins')
  const none = path.join(directory, 'none')
  await writeFile(plugins, '[].')
  const child = spawn('sh', ['-c', script, program], {
    // Ctrl-C reaches the example only, which can still finish its work.
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
    env: {
      PATH: process.env['PATH'],
      HOME: directory,
      ERL_EPMD_ADDRESS: '127.0.0.1',
      ERL_EPMD_PORT: String(epmdPort),
      RABBITMQ_NODENAME: `pgtally-${randomBytes(6).toString('hex')}@localhost`,
      RABBITMQ_NODE_IP_ADDRESS: '127.0.0.1',
      RABBITMQ_NODE_PORT: String(port),
      RABBITMQ_DIST_PORT: String(distributionPort),
      RABBITMQ_MNESIA_BASE: path.join(directory, 'mnesia'),
      RABBITMQ_LOG_BASE: path.join(directory, 'log'),
      RABBITMQ_ENABLED_PLUGINS_FILE: plugins,
      RABBITMQ_CONFIG_FILE: none,
      RABBITMQ_CONF_ENV_FILE: none,
    },
  })
  const ended = once(child, 'exit')
  const stop = async () => {
    child.stdin.end()
    await ended
  }
  const url = `amqp://guest:guest@127.0.0.1:${port}`
  for (const deadline = performance.now() + 60_000; ; await sleep(100)) {
    try {
      await (await connect(url)).close()
      return { url, restart: () => void child.stdin.write('\n'), [Symbol.asyncDispose]: stop }
    } catch (cause) {
      if (performance.now() < deadline) continue
      const log = await readFile(path.join(directory, 'server.log'), 'utf8').catch(() => '')
      await stop()
      throw new Error(`RabbitMQ did not start. Its log ends with:\n${log.trimEnd().split('\n').slice(-20).join('\n')}`, { cause })
    }
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'))
  await Promise.all(servers.map((server) => once(server, 'listening')))
  const ports = servers.map((server) => (server.address() as AddressInfo).port)
  await Promise.all(servers.map((server) => once(server.close(), 'close')))
  return ports
}
