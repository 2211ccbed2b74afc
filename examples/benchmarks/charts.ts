import { mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'

import { CustomChart, LineChart, BarChart } from 'echarts/charts'
import { GridComponent, LegendComponent, TitleComponent } from 'echarts/components'
import { init, use } from 'echarts/core'
import type { EChartsCoreOption } from 'echarts/core'
import { SVGRenderer } from 'echarts/renderers'

import { formatNumber } from './report.ts'
import { summarize } from './results.ts'
import type { Lines, Result } from './results.ts'

use([BarChart, LineChart, CustomChart, GridComponent, LegendComponent, TitleComponent, SVGRenderer])

const width = 960
export const ink = '#1f2937'
export const faint = '#d1d5db'
// Okabe and Ito's colours, which the colour-blind can tell apart.
const palette = ['#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000']
const own = '#0072b2'
const others = '#94a3b8'

/** One SVG file for each result with bars, and one for each chart over time. */
export async function writeCharts(directory: string, results: readonly Result[]): Promise<void> {
  await mkdir(directory, { recursive: true })
  const write = (name: string, option: EChartsCoreOption, height: number) => writeFile(path.join(directory, `${name}.svg`), renderSvg(option, height))
  for (const result of results) {
    if (result.bars && result.rows.length > 0) await write(result.id, bars(result), 110 + 36 * result.rows.length)
    for (const chart of result.charts ?? []) await write(chart.id, lines(chart), 480)
  }
}

export function renderSvg(option: EChartsCoreOption, height: number): string {
  const chart = init(null, null, { renderer: 'svg', ssr: true, width, height })
  try {
    // On white, so that it can be read on a dark slide, too.
    chart.setOption({ animation: false, backgroundColor: '#ffffff', textStyle: { color: ink, fontFamily: 'system-ui, sans-serif' }, color: palette, ...option })
    return chart.renderToSVGString()
  } finally {
    chart.dispose()
  }
}

const isOwn = (name: string) => name.startsWith('pgtally') || name.startsWith('tally.')

export const titleStyle = (text: string) => ({ text, left: 16, top: 12, textStyle: { fontSize: 14, fontWeight: 600, color: ink, width: width - 96, overflow: 'break' } })

/** The first metric, best first, with whiskers from the least to the most. */
function bars(result: Result): EChartsCoreOption {
  const [metric] = result.metrics
  const summaries = summarize(result)
  const found = Object.entries(summaries).flatMap(([name, summary]) => {
    const figures = metric && summary[metric.key]
    return figures === undefined ? [] : [{ name, ...figures }]
  })
  const sorted = found.toSorted((one, other) => one.median - other.median)
  const label = ({ median, ratio }: (typeof sorted)[number]) => `${formatNumber(median, metric?.digits)}${ratio === undefined ? '' : `  (${formatNumber(ratio, 2)})`}`
  return {
    title: titleStyle(result.title),
    grid: { left: 40, right: 130, top: 72, bottom: 40, outerBoundsMode: 'same', outerBoundsContain: 'axisLabel' },
    xAxis: { type: 'value', name: metric?.title, nameLocation: 'middle', nameGap: 28, splitLine: { lineStyle: { color: faint } }, axisLabel: { color: ink }, nameTextStyle: { color: ink } },
    yAxis: { type: 'category', data: sorted.map(({ name }) => name), axisTick: { show: false }, axisLabel: { color: ink, fontSize: 11 } },
    series: [
      {
        type: 'bar',
        barWidth: '62%',
        data: sorted.map(({ name, median }) => ({ value: median, itemStyle: { color: isOwn(name) ? own : others } })),
        label: { show: true, position: 'right', distance: 12, color: ink, formatter: ({ dataIndex }: { dataIndex: number }) => (sorted[dataIndex] ? label(sorted[dataIndex]) : '') },
      },
      { type: 'custom', silent: true, z: 3, data: sorted.map(({ min, max }, index) => [min, max, index]), encode: { x: [0, 1], y: 2 }, renderItem: whisker },
    ],
  }
}

interface WhiskerApi {
  value(dimension: number): number
  coord(point: [number, number]): [number, number]
}

function whisker(_params: unknown, api: WhiskerApi) {
  const [from, y] = api.coord([api.value(0), api.value(2)])
  const [to] = api.coord([api.value(1), api.value(2)])
  const line = (x1: number, y1: number, x2: number, y2: number) => ({ type: 'line', shape: { x1, y1, x2, y2 }, style: { stroke: ink, lineWidth: 1.5 } })
  return { type: 'group', children: [line(from, y, to, y), line(from, y - 5, from, y + 5), line(to, y - 5, to, y + 5)] }
}

export const axisStyle = { nameLocation: 'middle', nameTextStyle: { color: ink }, axisLabel: { color: ink } }

function lines(chart: Lines): EChartsCoreOption {
  const axis = { ...axisStyle, type: 'value' }
  return {
    title: titleStyle(chart.title),
    legend: { bottom: 8, itemGap: 28, textStyle: { color: ink } },
    grid: { left: 24, right: 32, top: 72, bottom: 84 },
    xAxis: { ...axis, name: chart.xTitle, nameGap: 28, min: 'dataMin', max: 'dataMax', axisLabel: { color: ink, formatter: (value: number) => String(Math.round(value * 10) / 10) }, splitLine: { show: false } },
    yAxis: { ...axis, ...(chart.logarithmic ? { type: 'log' } : { min: 0 }), name: chart.yTitle, nameGap: 64, splitLine: { lineStyle: { color: faint } } },
    series: chart.lines.map(({ name, points }) => ({ type: 'line', name, data: points, showSymbol: false, lineStyle: { width: 2 }, ...(isOwn(name) && { color: own }) })),
  }
}
