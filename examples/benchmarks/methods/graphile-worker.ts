import { runMigrations } from 'graphile-worker'

import { startProcess } from '../processes.ts'
import { statements, storedInPosts } from './method.ts'
import type { Method } from './method.ts'

/** A job for each like, by `add_job()` in the same statement: https://worker.graphile.org/docs/sql-add-job */
export const graphileWorker: Method = {
  name: 'graphile-worker, a job per like',
  async open({ connectionString }, tables) {
    await runMigrations({ connectionString })
    const task = tables.schema
    const add = (delta: number) => `select graphile_worker.add_job('${task}', json_build_object('post', post_id, 'delta', ${delta})) from changed`
    return {
      ...statements(tables, add),
      stored: storedInPosts(tables),
      consume: () => startProcess(new URL('../consumers/graphile-worker.ts', import.meta.url), [connectionString, task, tables.posts]),
      schemas: ['graphile_worker'],
    }
  },
}
