import { pathToFileURL } from 'node:url'

import { PgtallyError } from '../errors.ts'
import type { WorkerModule, WorkerModuleContext } from '../worker-module.ts'

/** @throws PgtallyError INVALID_ARGUMENT (the module does not export what it should); what importing it throws */
export async function loadModule(path: string, context: WorkerModuleContext): Promise<WorkerModule> {
  const { default: exported } = (await import(pathToFileURL(path).href)) as { default?: unknown }
  const found: unknown = typeof exported === 'function' ? await (exported as (context: WorkerModuleContext) => unknown)(context) : exported
  if (Array.isArray(found)) return { consumers: found }
  if (isModule(found)) return found
  throw new PgtallyError(
    'INVALID_ARGUMENT',
    `${path} has to export what to run: export default [defineConsumer({ … })], or { consumers, onApplied }, or a function that returns one of these.`,
  )
}

function isModule(found: unknown): found is WorkerModule {
  if (typeof found !== 'object' || found === null) return false
  const { consumers = [], onApplied, ...rest } = found as WorkerModule
  return Array.isArray(consumers) && (onApplied === undefined || typeof onApplied === 'function') && Object.keys(rest).length === 0
}
