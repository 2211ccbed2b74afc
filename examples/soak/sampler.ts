import type { Load, Site } from './site.ts'
import type { WorkerProcess } from './workers.ts'

export interface Sample {
  /** Seconds since the beginning. */
  at: number
  /** Since the sample before. */
  likesPerSecond: number
  /** How far stored counts are behind, in seconds. */
  lagSeconds: number
  workerBytes: number
  /** All that is in pgtally's schema: events, positions, carry, with their indexes. */
  pgtallyBytes: number
  /** The counted table with its indexes. */
  postsBytes: number
}

const sizes = `
  select (select coalesce(sum(pg_table_size(c.oid) + pg_indexes_size(c.oid)), 0)::float8 from pg_class c where c.relnamespace = 'pgtally'::regnamespace and c.relkind in ('r', 'm')) as pgtally,
    (pg_table_size('posts') + pg_indexes_size('posts'))::float8 as posts`

/** Takes samples; none where the server is not there. */
export class Sampler {
  readonly samples: Sample[] = []
  readonly #site: Site
  readonly #load: Load
  readonly #worker: WorkerProcess
  readonly #began = performance.now()
  #likes = 0
  #lastAt = 0

  constructor(site: Site, load: Load, worker: WorkerProcess) {
    this.#site = site
    this.#load = load
    this.#worker = worker
  }

  get elapsedSeconds(): number {
    return (performance.now() - this.#began) / 1000
  }

  async take(): Promise<void> {
    const at = this.elapsedSeconds
    const { likes } = this.#load
    const [status, size, workerBytes] = await Promise.all([
      this.#site.tally.status(),
      this.#site.admin.query<{ pgtally: number; posts: number }>(sizes),
      this.#worker.residentBytes(),
    ])
    this.samples.push({
      at,
      likesPerSecond: (likes - this.#likes) / (at - this.#lastAt),
      lagSeconds: Math.max(...status.counters.map(({ lagSeconds }) => lagSeconds)),
      workerBytes,
      pgtallyBytes: size.rows[0]?.pgtally ?? 0,
      postsBytes: size.rows[0]?.posts ?? 0,
    })
    this.#likes = likes
    this.#lastAt = at
  }
}
