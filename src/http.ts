import { dashboardRoutes } from './http/dashboard.ts'
import { Health } from './http/health.ts'
import { Known } from './known.ts'
import { HttpServer } from './http/server.ts'
import type { Route } from './http/server.ts'
import { silent } from './logger.ts'
import type { Logger } from './logger.ts'
import { PrometheusMetrics } from './metrics/prometheus.ts'
import type { Consumer } from './queue/consumer.ts'
import { readStatus } from './status.ts'
import type { Tally } from './tally.ts'
import type { Worker } from './worker/worker.ts'

export type { HttpServer } from './http/server.ts'

export interface HttpOptions {
  /** Default 9464; 0 takes any that is free. */
  port?: number | undefined
  /** The name or address to listen on. Default 127.0.0.1: this machine only. */
  host?: string | undefined
  /** What everything but `/healthz`, `/readyz` and the page without its data asks for, as `Authorization: Bearer TOKEN`. By default nothing is asked for. */
  token?: string | undefined
  logger?: Logger | undefined
}

/** A tally's database, whatever its counters. */
type AnyTally = Pick<Tally, 'pool' | 'schema'>

/**
 * Serves how a database and the workers and consumers of this process are doing: a page at `/`, `/metrics` for Prometheus, `/healthz` and `/readyz`. Read-only, and answered from one more connection of the
 * tally's pool or two. To be called right after they have been started: metrics count from then on.
 *
 * @throws PgtallyError INVALID_ARGUMENT (port, host or token), IN_USE (the port is taken), PERMISSION_DENIED
 *
 * @example
 * ```ts
 * await using worker = tally.worker()
 * await using http = await serveHttp(tally, [worker], { port: 9464 })
 * ```
 */
export async function serveHttp({ pool, schema }: AnyTally, services: readonly (Worker | Consumer)[], { port = 9464, host = '127.0.0.1', token, logger = silent }: HttpOptions = {}): Promise<HttpServer> {
  const known = new Known(pool, (client) => readStatus(client, schema))
  const health = new Health(pool, schema, services)
  const metrics = new PrometheusMetrics({ pool, known, services, health })
  const routes: Route[] = [metrics.route, ...health.routes, ...dashboardRoutes(known, services, token !== undefined)]
  const server = await HttpServer.listen(routes, { port, host, token, logger })
  logger.info({ url: server.url }, 'HTTP server listens')
  return server
}
