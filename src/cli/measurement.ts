import { createLogUpdate } from 'log-update'

import type { MeasureProgress, Measurement } from '../counters/measure.ts'
import { formatTable } from '../table.ts'

const printedDrifts = 20
const plainIntervalMs = 10_000

const number = (value: number) => value.toLocaleString('en-US')

/** An option's value for each time it is given. */
export function collect(value: string, earlier: string[] = []): string[] {
  return [...earlier, value]
}

/**
 * Runs `work` and shows on standard error how far it is: in place on a terminal, else with a line now and then.
 * Standard output is for the result.
 */
export async function withProgress<T>(work: (onProgress: (progress: MeasureProgress) => void) => Promise<T>): Promise<T> {
  if (!process.stderr.isTTY) {
    let printedAt = performance.now()
    return work((progress) => {
      if (performance.now() - printedAt < plainIntervalMs) return
      printedAt = performance.now()
      process.stderr.write(`${describeProgress(progress)}\n`)
    })
  }
  const update = createLogUpdate(process.stderr)
  try {
    return await work((progress) => update(describeProgress(progress)))
  } finally {
    update.clear()
  }
}

function describeProgress({ counter, checkedKeys, driftingKeys, estimatedKeys }: MeasureProgress): string {
  const about = estimatedKeys === null || estimatedKeys < checkedKeys ? '' : ` of about ${number(estimatedKeys)}`
  return `${counter}: ${number(checkedKeys)}${about} keys, ${number(driftingKeys)} drifting`
}

/** `found` says what was done about the drift; `source` names what the counts were held against. */
export function describeMeasurement(
  { counter, checkedKeys, driftingKeys, drifts }: Measurement,
  found: 'drifting' | 'corrected' | 'to be corrected',
  source = 'source',
): string {
  const checked = `${counter}: ${number(checkedKeys)} ${checkedKeys === 1 ? 'key' : 'keys'} checked`
  if (driftingKeys === 0) return `${checked}, no drift.`
  const shown = drifts.slice(0, printedDrifts)
  const more = driftingKeys - new Set(shown.map(({ key }) => key)).size
  return [
    `${checked}, ${number(driftingKeys)} ${found}:`,
    formatTable(
      ['key', source, 'stored', 'carried', 'pending', 'drift'],
      shown.map((drift) => [drift.part === undefined ? drift.key : `${drift.key}, ${drift.part}`, ...[drift.source, drift.stored, drift.carried, drift.pending].map(number), `${drift.drift > 0 ? '+' : ''}${number(drift.drift)}`]),
      [1, 2, 3, 4, 5],
    ),
    ...(more > 0 ? [`… and ${number(more)} more.`] : []),
  ].join('\n')
}
