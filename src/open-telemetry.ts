import { createRequire } from 'node:module'

import type * as Api from '@opentelemetry/api'

import { describeError } from './errors.ts'
import { version } from './version.ts'

// Null: not looked for yet.
let api: typeof Api | undefined | null = null

/** The application's `@opentelemetry/api`; undefined where there is none. It needs nothing of pgtally's, and pgtally nothing of it. */
export function openTelemetry(): typeof Api | undefined {
  if (api === null) {
    try {
      // Not by import, which would be asynchronous and keep pgtally from being required. All copies of the API share what the application has registered.
      api = createRequire(import.meta.url)('@opentelemetry/api') as typeof Api
    } catch {
      api = undefined
    }
  }
  return api
}

export type Attributes = Readonly<Record<string, string | number | boolean>>

export interface SpanOptions {
  name: string
  /** It begins a trace of its own, whatever the worker was started within. */
  isRoot?: boolean
  /** A batch of a queue is worked at. */
  isBatch?: boolean
  attributes: Attributes
}

const unheard = () => {}

/**
 * Does `work` within a span, of which it may say more; without OpenTelemetry just so. What `work` does is within the span, too: the statements, where pg is instrumented.
 * Attributes have the names of OpenTelemetry's semantic conventions for messaging where there is one.
 */
export async function traced<T>({ name, isRoot = false, isBatch = false, attributes }: SpanOptions, work: (say: (more: Attributes) => void) => Promise<T>): Promise<T> {
  const otel = openTelemetry()
  if (otel === undefined) return work(unheard)
  const options = { attributes: { 'db.system.name': 'postgresql', ...attributes }, root: isRoot, kind: isBatch ? otel.SpanKind.CONSUMER : otel.SpanKind.INTERNAL }
  return otel.trace.getTracer('pgtally', version).startActiveSpan(name, options, async (span) => {
    try {
      return await work((more) => span.setAttributes(more))
    } catch (error) {
      const message = describeError(error)
      span.setAttribute('error.type', error instanceof Error && 'code' in error ? String(error.code) : '_OTHER')
      span.recordException(error instanceof Error ? error : message)
      span.setStatus({ code: otel.SpanStatusCode.ERROR, message })
      throw error
    } finally {
      span.end()
    }
  })
}
