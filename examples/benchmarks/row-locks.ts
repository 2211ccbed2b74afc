import { setTimeout as sleep } from 'node:timers/promises'

import type { Bench } from './bench.ts'
import { withClients } from './clients.ts'

const watchedRows = 20
const pollMs = 1

/**
 * Looks at some rows again and again, without a lock of its own, and finds how long the longest of their locks was held: whoever locks or updates a
 * row puts his transaction's id into its xmax, and with his commit another version is to be seen. `stop()` gives milliseconds, to about two.
 */
export function watchRowLocks(bench: Bench, table: string, key: string, keys: number): { stop(): Promise<number> } {
  const stopping = new AbortController()
  const watching = withClients(
    bench,
    async ([client]) => {
      const ids = Array.from({ length: Math.min(watchedRows, keys) }, (_, index) => 1 + Math.floor((index * keys) / watchedRows))
      const lockedSince = new Map<string, { version: string; at: number }>()
      let longestMs = 0
      for (let last = false; !last; await sleep(pollMs)) {
        // One look more, which sees what was committed before it was stopped.
        last = stopping.signal.aborted
        const result = await client?.query<{ id: string; version: string; locked: boolean }>(
          `select ${key} as id, ctid::text as version, xmax <> 0 and xmax <> xmin as locked from ${table} where ${key} = any($1)`,
          [ids],
        )
        const now = performance.now()
        for (const { id, version, locked } of result?.rows ?? []) {
          const since = lockedSince.get(id)
          if (since !== undefined && since.version !== version) {
            longestMs = Math.max(longestMs, now - since.at)
            lockedSince.delete(id)
          }
          if (locked && since?.version !== version) lockedSince.set(id, { version, at: now })
        }
      }
      return longestMs
    },
    1,
  )
  watching.catch(() => {})
  return {
    stop() {
      stopping.abort()
      return watching
    },
  }
}
