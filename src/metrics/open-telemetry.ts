import type { Counter, Histogram } from '@opentelemetry/api'
import type { Pool } from 'pg'

import type { Observer } from '../activity.ts'
import { Known } from '../known.ts'
import { openTelemetry } from '../open-telemetry.ts'
import { readStatus } from '../status.ts'
import { version } from '../version.ts'
import { durationBuckets } from './metric.ts'
import type { Metric } from './metric.ts'
import { processMetrics, record } from './process.ts'
import { stateMetrics } from './state.ts'

/** Gives what happens in this process to the meter that the application has registered by now; undefined without OpenTelemetry. */
export function activityMeter(): Observer | undefined {
  const meter = openTelemetry()?.metrics.getMeter('pgtally', version)
  if (meter === undefined) return undefined
  const counters = new Map<Metric, Counter>()
  const histograms = new Map<Metric, Histogram>()
  for (const metric of processMetrics) {
    const options = { description: metric.help, unit: metric.unit }
    if (metric.kind === 'histogram') histograms.set(metric, meter.createHistogram(metric.name, { ...options, advice: { explicitBucketBoundaries: durationBuckets } }))
    else counters.set(metric, meter.createCounter(metric.name, options))
  }
  const recorder = {
    add: (metric: Metric, value: number, labels: Readonly<Record<string, string>>) => {
      counters.get(metric)?.add(value, labels)
      histograms.get(metric)?.record(value, labels)
    },
  }
  return (activity) => record(recorder, activity)
}

/**
 * Has the meter that the application has registered by now ask where the database stands, whenever it collects.
 *
 * @returns what ends that
 */
export function observeState(pool: Pool, schema: string): () => void {
  const meter = openTelemetry()?.metrics.getMeter('pgtally', version)
  if (meter === undefined) return () => {}
  const known = new Known(pool, (client) => readStatus(client, schema))
  const instruments = stateMetrics.map((metric) => {
    const options = { description: metric.help, unit: metric.unit }
    return [metric, metric.kind === 'counter' ? meter.createObservableCounter(metric.name, options) : meter.createObservableGauge(metric.name, options)] as const
  })
  const all = instruments.map(([, instrument]) => instrument)
  const collect = async (result: { observe: (instrument: (typeof all)[number], value: number, labels: Readonly<Record<string, string>>) => void }) => {
    const { value: status, error } = await known.get()
    // A gap says more than a figure of long ago.
    if (status === undefined || error !== undefined) return
    for (const [metric, instrument] of instruments) {
      for (const [labels, value] of metric.read(status)) result.observe(instrument, value, labels)
    }
  }
  meter.addBatchObservableCallback(collect, all)
  return () => meter.removeBatchObservableCallback(collect, all)
}
