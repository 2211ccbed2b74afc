import { styleText } from 'node:util'

import { createLogUpdate } from 'log-update'

import { formatCount, formatMs, formatNumber } from './report.ts'
import type { DemoView, WayResult } from './run.ts'
import type { StormProgress } from './storm.ts'
import type { Way } from './ways.ts'

/** A view that can be told lines of its own, and ends before anyone else writes. */
export interface TextView extends DemoView {
  /** What takes a moment before the first way. */
  waits(text: string): void
  print(lines: readonly string[]): void
  close(): void
}

const barWidth = 40

function figures(way: Way, { perSecond, readMs, behind, shownCount }: StormProgress): string {
  const behindText = way.id === 'pgtally' ? ` by ${formatCount(behind.likes, 'like')}, ${formatMs(behind.ms)}` : ' 0'
  return `${formatNumber(perSecond)} likes/s · read ${formatMs(readMs)} · count ${formatNumber(shownCount)} · behind${behindText}`
}

function summary({ way, likesPerSecond, read, behind, count, exact }: WayResult): string {
  const behindText = way === 'pgtally' ? formatMs(behind.medianMs) : '0'
  const verdict = exact ? `exact: ${formatNumber(count.read)}` : `WRONG: ${formatNumber(count.read)} instead of ${formatNumber(count.rows)}`
  return `${formatNumber(likesPerSecond)} likes/s · read ${formatMs(read.medianMs)} · behind ${behindText} · ${verdict}`
}

/** One line after the other, for pipes and logs. */
export function createPlainView(write: (line: string) => void): TextView {
  let shownSeconds = 0
  return {
    waits: write,
    print: (lines) => lines.forEach(write),
    prepares(way) {
      shownSeconds = 0
      write(`${way.name}: ${way.description}`)
    },
    progress(way, progress) {
      const seconds = Math.floor(progress.elapsedMs / 1000)
      if (seconds === shownSeconds) return
      shownSeconds = seconds
      write(`${way.name}: ${seconds} s · ${figures(way, progress)}`)
    },
    ends: (way, result) => write(`${way.name}: ${summary(result)}`),
    close: () => {},
  }
}

/** Live, on a terminal: the way under way is drawn again and again, those that have ended stay above it. */
export function createLiveView(stream: NodeJS.WriteStream): TextView {
  const live = createLogUpdate(stream)
  const style = (format: Parameters<typeof styleText>[0], text: string) => styleText(format, text, { stream })
  // Cut to the terminal's width: a wrapped line would make the picture jump.
  const fit = (text: string, used: number) => text.slice(0, Math.max((stream.columns ?? 80) - used - 1, 0))
  const head = (mark: string, way: Way) => `${mark} ${style('bold', way.name.padEnd(8))} ${style('dim', fit(way.description, 11))}`
  return {
    waits: (text) => live(style('dim', fit(text, 0))),
    print(lines) {
      live.clear()
      live.done()
      stream.write(`${lines.join('\n')}\n`)
    },
    prepares: (way) => live(`${head(' ', way)}\n  ${style('dim', 'preparing …')}`),
    progress(way, progress) {
      const share = Math.min(progress.elapsedMs / progress.totalMs, 1)
      const filled = Math.round(share * barWidth)
      const bar = style('cyan', '█'.repeat(filled)) + style('dim', '░'.repeat(barWidth - filled))
      const seconds = `${(progress.elapsedMs / 1000).toFixed(1)} of ${(progress.totalMs / 1000).toFixed(1)} s`
      live(`${head(style('cyan', '▸'), way)}\n  ${bar} ${seconds}\n  ${fit(figures(way, progress), 2)}`)
    },
    ends(way, result) {
      const mark = result.exact ? style('green', '✔') : style('red', '✘')
      live.persist(`${head(mark, way)}\n  ${fit(summary(result), 2)}`)
    },
    close() {
      live.clear()
      live.done()
    },
  }
}

/** Shows nothing, for `--json`. */
export function createSilentView(): TextView {
  const nothing = () => {}
  return { waits: nothing, print: nothing, prepares: nothing, progress: nothing, ends: nothing, close: nothing }
}
