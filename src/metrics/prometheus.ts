import type { Pool } from 'pg'
import { Counter, Gauge, Histogram, Registry } from 'prom-client'

import type { Health } from '../http/health.ts'
import type { Knowledge, Known } from '../known.ts'
import type { Route } from '../http/server.ts'
import { Consumer } from '../queue/consumer.ts'
import type { Service } from '../service.ts'
import type { Status } from '../status.ts'
import { version } from '../version.ts'
import { Worker } from '../worker/worker.ts'
import { durationBuckets, prometheusName } from './metric.ts'
import type { Labels, Metric } from './metric.ts'
import { processMetrics, record } from './process.ts'
import { stateMetrics } from './state.ts'

interface Sources {
  pool: Pool
  known: Known<Status>
  services: readonly Service[]
  health: Health
}

type Instrument = Counter | Gauge | Histogram
type Samples = readonly (readonly [labels: Labels, value: number])[]

/** The metrics of this process and of the database, in the text format of Prometheus. */
export class PrometheusMetrics {
  readonly #sources: Sources
  readonly #registry = new Registry()
  readonly #instruments = new Map<Metric, Instrument>()
  /** As of this scrape. */
  #isDatabaseUp = false
  #stateReadAt = performance.now()

  constructor(sources: Sources) {
    this.#sources = sources
    this.#makeGauges()
    for (const metric of [...processMetrics, ...stateMetrics]) this.#instruments.set(metric, this.#make(metric))
    const recorder = { add: (metric: Metric, value: number, labels: Labels) => this.#add(metric, value, labels) }
    for (const service of sources.services) service.observe((activity) => record(recorder, activity))
  }

  get route(): Route {
    return { path: '/metrics', respond: async () => ({ type: this.#registry.contentType, body: await this.#read() }) }
  }

  /** Never fails for want of the database: then it says what was last known of it. */
  async #read(): Promise<string> {
    this.#setState(await this.#sources.known.get())
    return this.#registry.metrics()
  }

  /** All at once, so that a scrape beside this one sees none of it half done. */
  #setState({ value: status, readAt, error }: Knowledge<Status>): void {
    this.#isDatabaseUp = error === undefined
    if (status === undefined) return
    this.#stateReadAt = readAt
    for (const metric of stateMetrics) {
      this.#instruments.get(metric)?.reset()
      for (const [labels, value] of metric.read(status)) this.#add(metric, value, labels)
    }
  }

  #add(metric: Metric, value: number, labels: Labels): void {
    const instrument = this.#instruments.get(metric)
    if (instrument instanceof Histogram) instrument.observe(labels, value)
    else if (instrument instanceof Counter) instrument.inc(labels, value)
    else instrument?.set(labels, value)
  }

  #make(metric: Metric): Instrument {
    const configuration = { name: prometheusName(metric), help: metric.help, labelNames: [...metric.labels], registers: [this.#registry] }
    if (metric.kind === 'histogram') return new Histogram({ ...configuration, buckets: durationBuckets })
    return metric.kind === 'counter' ? new Counter(configuration) : new Gauge(configuration)
  }

  #makeGauges(): void {
    const { pool, health } = this.#sources
    const workers = health.watched.filter(({ service }) => service instanceof Worker)
    this.#gauge('info', 'The version of pgtally in this process, as a label; always 1.', ['version'], () => [[{ version }, 1]])
    this.#gauge('database_up', '1 when the database has answered this scrape; otherwise what is said of it is as old as pgtally_status_age_seconds says.', [], () => [[{}, Number(this.#isDatabaseUp)]])
    this.#gauge('status_age_seconds', 'Age of what is said of the database; of this server, until it has said anything.', [], () => [[{}, (performance.now() - this.#stateReadAt) / 1000]])
    this.#gauge('pool_connections', 'Connections of the pool of this process: used and idle.', ['state'], () => [
      [{ state: 'used' }, pool.totalCount - pool.idleCount],
      [{ state: 'idle' }, pool.idleCount],
    ])
    this.#gauge('pool_max_connections', 'How many connections the pool of this process may have.', [], () => [[{}, pool.options.max]])
    this.#gauge('pool_waiting', 'How many wait in this process for a connection of the pool.', [], () => [[{}, pool.waitingCount]])
    this.#gauge('worker_consumer_up', '1 while the consumer runs in this process, 0 when it has ended there.', ['queue', 'consumer'], () =>
      health.watched.flatMap((watched) => (watched.service instanceof Consumer ? [[watched.service.names, Number(health.works(watched))] as const] : [])),
    )
    // Without labels, a metric is always there: where no worker is, it would say that it is down.
    if (workers.length === 0) return
    this.#gauge('worker_up', '1 while the worker has looked what is due with success in the last 15 s.', [], () => [[{}, Number(workers.every((worker) => health.works(worker)))]])
    this.#gauge('worker_last_round_timestamp_seconds', 'When the worker last looked with success, in Unix time; 0 when it has not yet.', [], () => {
      const oldest = Math.min(...workers.map(({ succeededAt }) => succeededAt))
      return [[{}, oldest === Number.NEGATIVE_INFINITY ? 0 : (performance.timeOrigin + oldest) / 1000]]
    })
  }

  #gauge(name: string, help: string, labelNames: string[], read: () => Samples): void {
    const gauge = new Gauge({
      name: `pgtally_${name}`,
      help,
      labelNames,
      registers: [],
      collect() {
        this.reset()
        for (const [labels, value] of read()) this.set(labels, value)
      },
    })
    this.#registry.registerMetric(gauge)
  }
}
