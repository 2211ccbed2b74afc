/** One figure of a table. */
export interface Metric {
  key: string
  /** With its unit: `likes/s`. */
  title: string
  /** Decimals; default 0. */
  digits?: number
  /** Also as a ratio to the first row of the same round, and as the own row's to it. */
  ratio?: true
}

export interface Row {
  name: string
  /** By the metric's key; one for each round, or one for all. */
  samples: Record<string, number[]>
}

export interface NotRun {
  name: string
  /** And what to do about it. */
  reason: string
}

/** Something over time. */
export interface Lines {
  /** The name of its file. */
  id: string
  title: string
  xTitle: string
  yTitle: string
  /** Where lines lie far apart. */
  logarithmic?: true
  lines: { name: string; points: [x: number, y: number][] }[]
}

/** A table. */
export interface Result {
  /** Also the name of its charts' files. */
  id: string
  title: string
  metrics: Metric[]
  rows: Row[]
  /** The row that is held against each of the others. */
  own?: string
  /** What could not run here. */
  notRun?: NotRun[]
  /** What ran and came to nothing, such as a wrong count. */
  failed?: NotRun[]
  notes?: string[]
  /** Draw the first metric as bars. */
  bars?: true
  charts?: Lines[]
}

export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN
}

export const median = (values: readonly number[]) => quantile(values, 0.5)

/** The median of the ratios to `first`, round by round. */
export const ratioTo = (first: readonly number[], values: readonly number[]) => median(values.map((value, round) => value / (first[round] ?? Number.NaN)))

export const samplesOf = ({ samples }: Row, { key }: Metric): readonly number[] => samples[key] ?? []

export interface Summary {
  median: number
  min: number
  max: number
  /** To the first row. */
  ratio?: number
  /** The own row's to this one. */
  ownRatio?: number
}

/** What the tables show, by row and metric. */
export function summarize({ metrics, rows, own: ownName }: Result): Record<string, Record<string, Summary>> {
  const [first] = rows
  const own = rows.find(({ name }) => name === ownName)
  const of = (row: Row, metric: Metric): Summary => {
    const values = samplesOf(row, metric)
    return {
      median: median(values),
      min: Math.min(...values),
      max: Math.max(...values),
      ...(metric.ratio && first !== undefined && { ratio: ratioTo(samplesOf(first, metric), values) }),
      ...(metric.ratio && own !== undefined && { ownRatio: ratioTo(values, samplesOf(own, metric)) }),
    }
  }
  return Object.fromEntries(
    rows.map((row) => [row.name, Object.fromEntries(metrics.filter((metric) => samplesOf(row, metric).length > 0).map((metric) => [metric.key, of(row, metric)]))]),
  )
}
