import { formatTable } from '../../src/table.ts'
import type { Machine } from './bench.ts'
import { summarize } from './results.ts'
import type { Metric, Result } from './results.ts'

export function formatNumber(value: number | undefined, digits = 0): string {
  if (value === undefined || Number.isNaN(value)) return ''
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits })
}

/** Medians with minimum and maximum, where there were several rounds, and ratios to the first row and of the own row to each. */
export function formatResult(result: Result): string {
  const summaries = summarize(result)
  const several = (metric: Metric) => result.rows.some(({ samples }) => (samples[metric.key]?.length ?? 0) > 1)
  const columns = result.metrics.flatMap((metric) => [
    { title: metric.title, cell: (row: string) => formatNumber(summaries[row]?.[metric.key]?.median, metric.digits) },
    ...(several(metric)
      ? [
          { title: 'min', cell: (row: string) => formatNumber(summaries[row]?.[metric.key]?.min, metric.digits) },
          { title: 'max', cell: (row: string) => formatNumber(summaries[row]?.[metric.key]?.max, metric.digits) },
        ]
      : []),
    ...(metric.ratio ? [{ title: 'ratio', cell: (row: string) => formatNumber(summaries[row]?.[metric.key]?.ratio, 2) }] : []),
    ...(metric.ratio && result.own !== undefined ? [{ title: `${result.own} / it`, cell: (row: string) => formatNumber(summaries[row]?.[metric.key]?.ownRatio, 2) }] : []),
  ])
  const table = formatTable(
    ['', ...columns.map(({ title }) => title)],
    result.rows.map(({ name }) => [name, ...columns.map(({ cell }) => cell(name))]),
    columns.map((_, index) => index + 1),
  )
  const lines = [
    ...(result.notes ?? []),
    ...(result.notRun ?? []).map(({ name, reason }) => `not run: ${name}: ${reason}`),
    ...(result.failed ?? []).map(({ name, reason }) => `FAILED: ${name}: ${reason}`),
  ]
  return [result.title, '', table, ...lines, ''].join('\n')
}

export function formatMachine({ processor, cores, memoryGb, system, node, server }: Machine): string {
  return `${processor}, ${cores} cores, ${memoryGb} GB, ${system}; Node ${node}; ${Object.entries(server).map(([name, setting]) => `${name} ${setting}`).join(', ')}\n`
}
