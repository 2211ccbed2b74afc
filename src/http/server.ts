import { createHash, timingSafeEqual } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { isIP } from 'node:net'
import type { AddressInfo } from 'node:net'

import { PgtallyError, describeError } from '../errors.ts'
import type { Logger } from '../logger.ts'

/** What is answered to GET and HEAD of one path. */
export interface Route {
  /** As it is in the URL, beginning with a slash. */
  path: string
  /** Answered without the token, too. */
  open?: boolean
  respond(request: RouteRequest): Answer | Promise<Answer>
}

interface RouteRequest {
  /** Of the URL, after the question mark. */
  query: URLSearchParams
}

export interface Answer {
  /** Default 200. */
  status?: number
  /** The Content-Type. */
  type: string
  body: string | Uint8Array
  /** Besides the ones that every answer has; one of the same name (in lower case) replaces that. */
  headers?: Readonly<Record<string, string>>
}

export interface ServerOptions {
  port: number
  host: string
  token?: string | undefined
  logger: Logger
}

const plainText = 'text/plain; charset=utf-8'
/** Nothing is kept, guessed, framed, or read by pages of elsewhere; a page that needs more of the policy says so itself. */
const commonHeaders = {
  'cache-control': 'no-store',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
}
const requestTimeoutMs = 10_000
const closingGraceMs = 1000
const mostConnections = 200

/** Answers a few paths over HTTP/1.1, read-only. */
export class HttpServer implements AsyncDisposable {
  /** Where it listens, such as `http://127.0.0.1:9464`. */
  readonly url: string
  readonly #routes: ReadonlyMap<string, Route>
  readonly #options: ServerOptions
  readonly #server: Server
  readonly #isLocal: boolean
  readonly #tokenDigest: Buffer | undefined
  #closed: Promise<void> | undefined

  private constructor(server: Server, routes: readonly Route[], options: ServerOptions) {
    const { address, port } = server.address() as AddressInfo
    this.url = `http://${isIP(address) === 6 ? `[${address}]` : address}:${port}`
    this.#routes = new Map(routes.map((route) => [route.path, route]))
    this.#options = options
    this.#server = server
    this.#isLocal = isLoopback(address)
    this.#tokenDigest = options.token === undefined ? undefined : digest(options.token)
    server.on('request', (request, response) => void this.#answer(request, response))
    // One connection's trouble, such as too many open files, is not the worker's.
    server.on('error', (error) => options.logger.warn({ error: error.message }, 'HTTP server'))
  }

  /** @throws PgtallyError INVALID_ARGUMENT (port, host or token), IN_USE (the port is taken), PERMISSION_DENIED */
  static async listen(routes: readonly Route[], options: ServerOptions): Promise<HttpServer> {
    const { port, host, token } = options
    if (!Number.isInteger(port) || port < 0 || port > 65_535) throw new PgtallyError('INVALID_ARGUMENT', `The port ${port} is none. Use a whole number from 1 to 65535, or 0 for any that is free.`)
    // In a header there is nothing else.
    if (token !== undefined && !/^[\x21-\x7E]+$/.test(token)) throw new PgtallyError('INVALID_ARGUMENT', 'The HTTP token has to be one or more ASCII characters without spaces. Make one with `openssl rand -hex 32`.')
    const server = createServer({ requestTimeout: requestTimeoutMs, headersTimeout: requestTimeoutMs })
    server.maxConnections = mostConnections
    server.listen({ port, host })
    try {
      await once(server, 'listening')
    } catch (error) {
      throw listenError(error as NodeJS.ErrnoException, port, host)
    }
    return new HttpServer(server, routes, options)
  }

  /** Takes no more requests, lets those in hand end (a second at most), and resolves when all connections are closed. May be called again. */
  close(): Promise<void> {
    return (this.#closed ??= this.#close())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    const closed = once(this.#server, 'close')
    this.#server.close()
    const cutting = setTimeout(() => this.#server.closeAllConnections(), closingGraceMs)
    await closed
    clearTimeout(cutting)
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let answer: Answer
    try {
      answer = await this.#find(request)
    } catch (error) {
      this.#options.logger.warn({ path: request.url?.split('?')[0], error: describeError(error) }, 'HTTP request failed')
      answer = plain(500, 'This failed; the log of the worker says why.')
    }
    const { status = 200, type, body, headers } = answer
    response.writeHead(status, { ...commonHeaders, 'content-type': type, 'content-length': Buffer.byteLength(body), ...headers })
    response.end(request.method === 'HEAD' ? undefined : body)
  }

  async #find(request: IncomingMessage): Promise<Answer> {
    if (request.method !== 'GET' && request.method !== 'HEAD') return plain(405, 'Only GET and HEAD.', { allow: 'GET, HEAD' })
    if (!this.#isForUs(request.headers.host)) return plain(421, 'This is served to this machine only, under its own name: localhost or its address. For another name set a token.')
    const [path = '', query = ''] = (request.url ?? '').split('?', 2)
    const route = this.#routes.get(path)
    // What there is, is told to nobody who may not see it.
    if (!route?.open && !this.#isAllowed(request.headers.authorization)) {
      return plain(401, 'A token is needed: Authorization: Bearer TOKEN; in a browser, any name with the token as the password.', { 'www-authenticate': 'Bearer realm="pgtally", Basic realm="pgtally"' })
    }
    if (route === undefined) return plain(404, `There is nothing here. There is: ${[...this.#routes.keys()].join(', ')}`)
    return route.respond({ query: new URLSearchParams(query) })
  }

  /**
   * Without a token, what listens on this machine only is protected by that. A page of elsewhere could get round it by giving its own name this machine's address (DNS rebinding);
   * its requests then bear that name.
   */
  #isForUs(host: string | undefined): boolean {
    if (this.#tokenDigest !== undefined || !this.#isLocal) return true
    const name = host?.replace(/:\d*$/, '').toLowerCase() ?? ''
    return name === 'localhost' || name === this.#options.host.toLowerCase() || isIP(name.replace(/^\[|\]$/g, '')) > 0
  }

  #isAllowed(authorization: string | undefined): boolean {
    if (this.#tokenDigest === undefined) return true
    const [, scheme, credentials = ''] = /^(bearer|basic) +(\S+)$/i.exec(authorization ?? '') ?? []
    if (scheme === undefined) return false
    // A browser asks its user for a name and a password, and sends name:password.
    const token = scheme.toLowerCase() === 'bearer' ? credentials : Buffer.from(credentials, 'base64').toString('utf8').replace(/^[^:]*:/, '')
    // Digests have one length, so the time tells nothing about the token, nor how long it is.
    return timingSafeEqual(digest(token), this.#tokenDigest)
  }
}

export function plain(status: number, text: string, headers: Readonly<Record<string, string>> = {}): Answer {
  return { status, type: plainText, body: `${text}\n`, headers }
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}

function isLoopback(address: string): boolean {
  return address === '::1' || /^(::ffff:)?127\./.test(address)
}

function listenError(error: NodeJS.ErrnoException, port: number, host: string): PgtallyError {
  const options = { cause: error }
  const where = `${host} port ${port}`
  if (error.code === 'EADDRINUSE') return new PgtallyError('IN_USE', `The HTTP server cannot listen on ${where}: the port is taken. Choose another one, or stop what listens there.`, options)
  if (error.code === 'EACCES') return new PgtallyError('PERMISSION_DENIED', `The HTTP server may not listen on ${where}. Choose a port above 1023.`, options)
  return new PgtallyError('INVALID_ARGUMENT', `The HTTP server cannot listen on ${where}: ${error.message}. Use a name or address of this machine, or 0.0.0.0 for all of its addresses.`, options)
}
