import { expect, test } from 'vitest'

import { describeResults, formatResults } from '../src/demo/report.ts'
import type { WayResult } from '../src/demo/run.ts'
import { quantile } from '../src/demo/storm.ts'

const behind = { samples: 70, medianLikes: 80, maxLikes: 240, medianMs: 20, maxMs: 45 }
const count = { read: 210_000, rows: 210_000, acknowledged: 210_000 }

function result(way: WayResult['way'], name: string, likesPerSecond: number, medianMs: number): WayResult {
  return { way, name, likesPerSecond, likes: 12_000, unlikes: 2000, read: { reads: 300, medianMs, p99Ms: 2 * medianMs }, behind, catchUpMs: 10, count, exact: true }
}

const results = [result('count', 'COUNT(*)', 4000, 30), result('update', 'UPDATE', 1000, 0.75), result('pgtally', 'pgtally', 3000, 1)]
const said = (ways: WayResult[]) => describeResults(ways).join(' ')

test('says what the numbers say, also where pgtally is the slower one', () => {
  expect(said(results)).toContain('pgtally took in 3.0 times as many likes as UPDATE, and 0.75 times as many as COUNT(*).')
  expect(said(results)).toContain('A read of the stored count took 1.0 ms, COUNT(*) over 210,000 rows 30 ms.')
  expect(said(results)).toContain('20 ms (80 likes) behind, at most 45 ms (240) in 70 samples, and had all 10 ms after')
  expect(said(results)).toContain('Each count was exact')
})

test('fits a terminal of 80 columns', () => {
  const lines = [...describeResults(results), ...formatResults(results).split('\n')]
  expect(Math.max(...lines.map((line) => line.trimEnd().length))).toBeLessThan(80)
})

test('says which count was wrong', () => {
  const wrong = results.map((way) => (way.way === 'pgtally' ? { ...way, exact: false, count: { ...count, read: 209_999 } } : way))
  expect(said(wrong)).toContain('pgtally was WRONG: it read 209,999, there were 210,000 rows')
  expect(said(wrong)).not.toContain('Each count was exact')
  expect(formatResults(wrong)).toContain('NO')
})

test('quantiles by nearest rank', () => {
  expect([0.5, 0.99, 1].map((q) => quantile([1, 2, 3, 4], q))).toEqual([2, 4, 4])
  expect(quantile([], 0.5)).toBe(0)
})
