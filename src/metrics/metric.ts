/** Seconds: from a few milliseconds, which a batch takes on an idle machine, to a minute, which a backlog takes. */
export const durationBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

export interface Metric {
  /** As OpenTelemetry has it, such as `pgtally.queue.pending_events`. Prometheus's has the unit and the kind in it: see `prometheusName`. */
  name: string
  kind: 'counter' | 'gauge' | 'histogram'
  /** In UCUM, as OpenTelemetry wants it: `s`, `By`, or what is counted in braces; empty for what is 0 or 1. */
  unit: string
  help: string
  labels: readonly string[]
}

export type Labels = Readonly<Record<string, string>>

const unitSuffixes: Readonly<Record<string, string>> = { s: '_seconds', By: '_bytes' }

/** By the rules of OpenTelemetry for Prometheus, so a metric has one name there, whichever way it comes. */
export function prometheusName({ name, unit, kind }: Metric): string {
  return `${name.replaceAll('.', '_')}${unitSuffixes[unit] ?? ''}${kind === 'counter' ? '_total' : ''}`
}
