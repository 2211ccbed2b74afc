import type { Pool } from 'pg'

import { PgtallyError } from '../errors.ts'
import { checkInstalled } from '../install/install.ts'
import { Consumer } from '../queue/consumer.ts'
import type { Service } from '../service.ts'
import { Worker } from '../worker/worker.ts'
import { Known } from '../known.ts'
import { plain } from './server.ts'
import type { Answer, Route } from './server.ts'

/** A look at the database takes milliseconds. One that takes this long hangs. */
const hangsAfterMs = 60_000
/** Longer than a worker waits between two attempts to reach the database. */
const latelyMs = 15_000

interface Watched {
  service: Service
  name: string
  /** When its loop has last turned, or was first watched, and when it has last turned with success; as of `performance.now()`. */
  turnedAt: number
  succeededAt: number
  /** The time that it rests between two turns. */
  restMs: number
  /** Why it has ended. */
  ended?: { error: unknown }
}

/** Whether this process is alive, and whether it does its work. */
export class Health {
  readonly #watched: readonly Watched[]
  readonly #installed: Known<void>
  readonly #now: () => number

  constructor(pool: Pool, schema: string, services: readonly Service[], now: () => number = () => performance.now()) {
    this.#now = now
    this.#installed = new Known(pool, (client) => checkInstalled(client, schema))
    this.#watched = services.map((service) => ({ service, name: nameOf(service), turnedAt: now(), succeededAt: Number.NEGATIVE_INFINITY, restMs: 0 }))
    for (const watched of this.#watched) this.#watch(watched)
  }

  get routes(): Route[] {
    return [
      { path: '/healthz', open: true, respond: () => answer(this.whyDead()) },
      { path: '/readyz', open: true, respond: async () => answer(await this.whyNotReady()) },
    ]
  }

  /** What only a new process would mend. */
  whyDead(): string[] {
    return this.#watched.flatMap((watched) => {
      const { name, service, turnedAt, restMs, ended } = watched
      const sinceTurnMs = this.#now() - turnedAt
      if (ended !== undefined) return service.isStopping && ended.error === undefined ? [] : [`The ${name} has ended${because(ended.error)}.`]
      return service instanceof Worker && sinceTurnMs > restMs + hangsAfterMs ? [`The loop of the ${name} has not turned for ${Math.round(sinceTurnMs / 1000)} s.`] : []
    })
  }

  async whyNotReady(): Promise<string[]> {
    const { error, cause } = await this.#installed.get()
    const database = error === undefined ? [] : [`The database cannot be used${because(cause ?? new Error(error))}.`]
    const services = this.#watched.flatMap((watched) => {
      const { name, service, ended } = watched
      if (ended !== undefined) return [`The ${name} has ended${because(ended.error)}.`]
      if (service.isStopping) return [`The ${name} is stopping.`]
      if (this.works(watched)) return []
      return watched.succeededAt === Number.NEGATIVE_INFINITY ? [`The ${name} has not reached the database yet.`] : [`The ${name} has not reached the database for ${Math.round((this.#now() - watched.succeededAt) / 1000)} s.`]
    })
    return [...database, ...services]
  }

  get watched(): readonly Readonly<Watched>[] {
    return this.#watched
  }

  /** Whether it is at work: a worker, by its last successful look; a consumer, as long as it has not ended. */
  works({ service, ended, succeededAt, restMs }: Readonly<Watched>): boolean {
    if (ended !== undefined) return false
    return !(service instanceof Worker) || this.#now() - succeededAt <= restMs + latelyMs
  }

  #watch(watched: Watched): void {
    const end = (error?: unknown) => {
      watched.ended = { error }
    }
    watched.service.done.then(() => end(), end)
    watched.service.observe((activity) => {
      if (activity.kind !== 'look') return
      watched.turnedAt = this.#now()
      watched.restMs = activity.nextInMs
      if (activity.error === undefined) watched.succeededAt = watched.turnedAt
    })
  }
}

function nameOf(service: Service): string {
  return service instanceof Consumer ? `consumer "${service.names.consumer}" of the queue "${service.names.queue}"` : 'worker'
}

function answer(reasons: readonly string[]): Answer {
  return reasons.length === 0 ? plain(200, 'ok') : plain(503, reasons.join('\n'))
}

/** Anyone may ask, so of an error of the server or the network only its code is told; the log has all of it. */
function because(error: unknown): string {
  if (error === undefined) return ''
  if (error instanceof PgtallyError) return `: ${error.message.replace(/\.$/, '')}`
  if (error instanceof Error && 'code' in error) return ` (${String(error.code)})`
  return error instanceof Error && !('severity' in error) ? `: ${error.message}` : ''
}
