import { request } from 'node:http'
import { createConnection } from 'node:net'
import { text } from 'node:stream/consumers'

import { afterEach, expect, test } from 'vitest'

import { HttpServer, plain } from '../src/http/server.ts'
import type { Route, ServerOptions } from '../src/http/server.ts'
import { silent } from '../src/logger.ts'
import { outcome } from './support/fixtures.ts'

const hanging = Promise.withResolvers<void>()
const routes: Route[] = [
  { path: '/open', open: true, respond: () => plain(200, 'open') },
  { path: '/closed', respond: ({ query }) => ({ type: 'text/html', body: new TextEncoder().encode(`é ${query.get('key')}`), headers: { 'content-security-policy': "default-src 'self'", etag: '"1"' } }) },
  { path: '/broken', respond: async () => Promise.reject(new Error('a secret of the database')) },
  { path: '/slow', respond: async () => hanging.promise.then(() => plain(200, 'at last')) },
]

const servers: HttpServer[] = []
afterEach(async () => {
  for (const server of servers.splice(0)) await server.close()
})

async function listen(options: Partial<ServerOptions> = {}): Promise<HttpServer> {
  const server = await HttpServer.listen(routes, { port: 0, host: '127.0.0.1', logger: silent, ...options })
  servers.push(server)
  return server
}

/** As fetch(), which would not send another Host, nor such paths. */
async function ask(server: HttpServer, path: string, headers: Record<string, string> = {}, method = 'GET') {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number | undefined; body: string; headers: Record<string, unknown> }>()
  const { hostname, port } = new URL(server.url)
  request({ hostname, port, path, method, headers }, (response) => {
    text(response).then((body) => resolve({ status: response.statusCode, body, headers: response.headers }), reject)
  })
    .on('error', reject)
    .end()
  return promise
}

const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const basic = (pair: string) => ({ authorization: `Basic ${Buffer.from(pair).toString('base64')}` })

test('GET and HEAD are answered, and nothing else; each answer says that it is not to be kept or guessed', async () => {
  const server = await listen()
  const common = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff', 'referrer-policy': 'no-referrer', 'cross-origin-resource-policy': 'same-origin' }
  const policy = { 'content-security-policy': "default-src 'none'; frame-ancestors 'none'" }
  expect(await ask(server, '/open')).toMatchObject({ status: 200, body: 'open\n', headers: { ...common, ...policy, 'content-type': 'text/plain; charset=utf-8' } })
  const page = { ...common, 'content-security-policy': "default-src 'self'", etag: '"1"', 'content-type': 'text/html', 'content-length': '5' }
  expect(await ask(server, '/closed?key=42')).toMatchObject({ status: 200, body: 'é 42', headers: page })
  expect(await ask(server, '/closed?key=42', {}, 'HEAD')).toMatchObject({ status: 200, body: '', headers: page })
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH']) {
    expect(await ask(server, '/open', {}, method)).toMatchObject({ status: 405, headers: { ...common, ...policy, allow: 'GET, HEAD' } })
  }
  for (const path of ['/', '/open/', '//open', '/../open', '/closed%00', '/%']) expect(await ask(server, path)).toMatchObject({ status: 404, headers: common })
})

test('what fails says so to the log, not to who asked', async () => {
  const warnings: object[] = []
  const server = await listen({ logger: { ...silent, warn: (details) => warnings.push(details) } })
  expect(await ask(server, '/broken?x')).toMatchObject({ status: 500, body: expect.not.stringContaining('secret') })
  expect(warnings).toEqual([{ path: '/broken', error: 'a secret of the database' }])
})

test('a token is asked for, except where it is open', async () => {
  const server = await listen({ token: 's3cret' })
  expect(await ask(server, '/open')).toMatchObject({ status: 200 })
  expect(await ask(server, '/open', bearer('wrong'))).toMatchObject({ status: 200 })
  const wrong = [{}, bearer(''), bearer('s3cre'), bearer('s3cret2'), bearer('S3CRET'), bearer('s3cret x'), { authorization: 's3cret' }, { authorization: 'Digest s3cret' }, basic(''), basic('s3cret:'), basic('me:other')]
  for (const headers of wrong) {
    for (const path of ['/closed', '/nowhere']) {
      expect(await ask(server, path, headers)).toMatchObject({ status: 401, headers: { 'www-authenticate': expect.stringContaining('Bearer') } })
    }
  }
  for (const headers of [bearer('s3cret'), { authorization: 'bearer  s3cret' }, basic('me:s3cret'), basic(':s3cret')]) expect(await ask(server, '/closed', headers)).toMatchObject({ status: 200 })
  expect(await ask(server, '/nowhere', bearer('s3cret'))).toMatchObject({ status: 404 })
  // In a query it would get into logs.
  expect(await ask(server, '/closed?token=s3cret')).toMatchObject({ status: 401 })
})

test('on loopback without a token, requests under a foreign name are refused', async () => {
  const server = await listen()
  const port = new URL(server.url).port
  for (const host of ['localhost', 'LOCALHOST', `localhost:${port}`, '127.0.0.1', `127.0.0.1:${port}`, '[::1]:80']) expect(await ask(server, '/closed', { host })).toMatchObject({ status: 200 })
  for (const host of ['evil.example', `evil.example:${port}`, 'localhost.evil.example', '127.0.0.1.evil.example']) expect(await ask(server, '/open', { host })).toMatchObject({ status: 421 })
  expect(await ask(await listen({ token: 'x' }), '/closed', { host: 'metrics.example', ...bearer('x') })).toMatchObject({ status: 200 })
  const everywhere = await listen({ host: '0.0.0.0' })
  expect(everywhere.url).toMatch(/^http:\/\/0\.0\.0\.0:\d+$/)
  expect(await ask(everywhere, '/closed', { host: 'worker-1.monitoring.svc' })).toMatchObject({ status: 200 })
})

test('what cannot be listened on is one clear error', async () => {
  const taken = Number(new URL((await listen()).url).port)
  const wrong: [options: Partial<ServerOptions>, code: string, says: RegExp][] = [
    [{ port: taken }, 'IN_USE', new RegExp(`127\\.0\\.0\\.1 port ${taken}: the port is taken`)],
    [{ host: 'nowhere.invalid' }, 'INVALID_ARGUMENT', /nowhere\.invalid.*name or address of this machine/],
    [{ host: '192.0.2.1' }, 'INVALID_ARGUMENT', /192\.0\.2\.1/],
    [{ port: 65_536 }, 'INVALID_ARGUMENT', /65536/],
    [{ port: Number.NaN }, 'INVALID_ARGUMENT', /NaN/],
    [{ token: '' }, 'INVALID_ARGUMENT', /token/],
    [{ token: 'two words' }, 'INVALID_ARGUMENT', /token/],
  ]
  for (const [options, code, says] of wrong) expect(await outcome(listen(options))).toMatchObject({ code, message: expect.stringMatching(says) })
})

test('close() lets a request end that is in hand, and cuts off who says nothing', async () => {
  const server = await listen()
  const slow = ask(server, '/slow')
  const mute = createConnection(Number(new URL(server.url).port), '127.0.0.1')
  mute.on('error', () => {})
  const cut = new Promise((resolve) => mute.on('close', resolve))
  mute.write('GET /open HTTP/1.1\r\n')
  expect(await ask(server, '/open')).toMatchObject({ status: 200 })
  const closed = server.close()
  hanging.resolve()
  expect(await slow).toMatchObject({ status: 200, body: 'at last\n' })
  await closed
  await cut
  await server.close()
  expect(await outcome(ask(server, '/open'))).toMatchObject({ code: 'ECONNREFUSED' })
})
