import { ScatterChart } from 'echarts/charts'
import { use } from 'echarts/core'

import { axisStyle, faint, ink, renderSvg, titleStyle } from '../benchmarks/charts.ts'
import type { Sample } from './sampler.ts'

use([ScatterChart])

export interface Fault {
  /** Seconds since the beginning. */
  at: number
  name: string
}

const panelHeight = 120
const panels: { name: string; lines: { name: string; value: (sample: Sample) => number }[] }[] = [
  { name: 'likes/s', lines: [{ name: 'likes/s', value: ({ likesPerSecond }) => likesPerSecond }] },
  { name: 'lag, s', lines: [{ name: 'lag', value: ({ lagSeconds }) => lagSeconds }] },
  { name: 'memory, MB', lines: [{ name: 'worker', value: ({ workerBytes }) => workerBytes / 1e6 }] },
  {
    name: 'tables, MB',
    lines: [
      { name: "pgtally's", value: ({ pgtallyBytes }) => pgtallyBytes / 1e6 },
      { name: 'posts', value: ({ postsBytes }) => postsBytes / 1e6 },
    ],
  },
]

/** Everything over time, one below the other, with a mark where there was a fault. */
export function drawSoak(title: string, samples: readonly Sample[], faults: readonly Fault[]): string {
  const top = (panel: number) => 64 + panel * (panelHeight + 40)
  const minutes = (seconds: number) => seconds / 60
  const x = (panel: number) => ({ ...axisStyle, type: 'value', gridIndex: panel, min: 0, max: 'dataMax', splitLine: { show: false }, ...(panel === panels.length - 1 && { name: 'minutes', nameGap: 28 }) })
  const y = (name: string, panel: number) => ({ ...axisStyle, type: 'value', gridIndex: panel, min: 0, splitNumber: 3, name, nameGap: 52, splitLine: { lineStyle: { color: faint } } })
  return renderSvg(
    {
      title: titleStyle(title),
      legend: { bottom: 8, itemGap: 24, textStyle: { color: ink } },
      grid: panels.map((_, panel) => ({ left: 84, right: 32, top: top(panel), height: panelHeight })),
      xAxis: panels.map((_, panel) => x(panel)),
      yAxis: panels.map(({ name }, panel) => y(name, panel)),
      series: [
        ...panels.flatMap(({ lines }, panel) =>
          lines.map(({ name, value }) => ({ type: 'line', name, xAxisIndex: panel, yAxisIndex: panel, showSymbol: false, lineStyle: { width: 1.5 }, data: samples.map((sample) => [minutes(sample.at), value(sample)]) })),
        ),
        { type: 'scatter', name: 'fault', xAxisIndex: 0, yAxisIndex: 0, symbol: 'triangle', symbolSize: 6, itemStyle: { color: '#000000' }, data: faults.map(({ at }) => [minutes(at), 0]) },
      ],
    },
    top(panels.length) + 48,
  )
}
