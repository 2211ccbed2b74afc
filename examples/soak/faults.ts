import { setTimeout as sleep } from 'node:timers/promises'

import type pg from 'pg'

import type { EmbeddedServer } from '../../src/demo/embedded-server.ts'
import type { Site } from './site.ts'
import type { WorkerProcess } from './workers.ts'

export interface Victims {
  server: EmbeddedServer
  site: Site
  /** The one of the two workers that is not measured. */
  worker: WorkerProcess
}

async function inTransaction({ admin }: Site, work: (client: pg.PoolClient) => Promise<unknown>): Promise<void> {
  const client = await admin.connect()
  client.on('error', () => {})
  try {
    await client.query('begin')
    await work(client)
    await client.query('commit')
  } finally {
    client.release(true)
  }
}

/** What befalls a production database sooner or later; each lasts less than ten seconds. */
export const faults: Record<string, (victims: Victims) => Promise<unknown>> = {
  'worker killed': ({ worker }) => worker.restart('SIGKILL'),
  'worker deployed anew': ({ worker }) => worker.restart('SIGTERM'),
  'worker frozen for 5 s': async ({ worker }) => {
    worker.signal('SIGSTOP')
    await sleep(5000)
    worker.signal('SIGCONT')
  },
  'all connections cut': ({ site }) =>
    site.admin.query(`select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and application_name <> 'soak' and pid <> pg_backend_pid()`),
  'server crashed': async ({ server }) => {
    await server.crash()
    await server.restart()
  },
  'hot post locked for 5 s': ({ site }) =>
    inTransaction(site, async (client) => {
      await client.query(`update posts set title = 'held' where id = 1`)
      await sleep(5000)
    }),
  'REPEATABLE READ transaction held for 8 s': ({ site }) =>
    inTransaction(site, async (client) => {
      await client.query('set transaction isolation level repeatable read; select count(*) from posts')
      await sleep(8000)
    }),
  'posts locked by a migration for 1 s': ({ site }) =>
    inTransaction(site, async (client) => {
      await client.query('lock table posts in access exclusive mode')
      await sleep(1000)
    }),
  '50,000 likes in one statement': ({ site }) =>
    site.admin.query('insert into likes select 1 + n % 10000, -n - (extract(epoch from now()) * 1000)::bigint * 50000 from generate_series(0, 49999) n on conflict do nothing'),
}
