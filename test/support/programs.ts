import { once } from 'node:events'
import { access } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'

/** A program on the path, or where Debian has those of the system. Undefined when there is none. */
export async function findProgram(name: string): Promise<string | undefined> {
  for (const directory of [...(process.env['PATH'] ?? '').split(path.delimiter), '/usr/sbin']) {
    const program = path.join(directory, name)
    if (directory !== '' && (await access(program).then(() => true, () => false))) return program
  }
  return undefined
}

export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
