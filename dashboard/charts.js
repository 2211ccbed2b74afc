import { h } from './elements.js'
import { clock } from './format.js'
import { highest, newest } from './history.js'

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {string} colour a custom property of the style sheet
 * @property {boolean} [filled]
 * @property {boolean} [dashed]
 */

/** @typedef {(number | null)[][]} Values one array for each line */

const leastSeconds = 60
const dark = window.matchMedia('(prefers-color-scheme: dark)')
const cursors = uPlot.sync('time')

/** @param {string} property */
const colour = (property) => getComputedStyle(document.documentElement).getPropertyValue(property).trim()

/** @param {Line} line */
function seriesOf({ label, colour: property, filled, dashed }) {
  return {
    label,
    stroke: colour(property),
    width: 1.5,
    points: { show: false },
    ...(filled ? { fill: colour(`${property}-fill`) } : {}),
    ...(dashed ? { dash: [4, 4] } : {}),
  }
}

/**
 * At least from 0 to 1 of what is measured, so that nothing looks like a mountain range that is noise.
 *
 * @param {number} least
 * @returns {uPlot.Range.Function}
 */
const fromZero = (least) => (_, __, most) => [0, Math.max((most ?? 0) * 1.1, least)]

/**
 * All that there is, a minute at least.
 *
 * @type {uPlot.Range.Function}
 */
const seenSoFar = (_, first, latest) => [Math.min(first, latest - leastSeconds), latest]

/**
 * A chart with axes and a caption, which says in words what it shows: now, or where the pointer is.
 *
 * @param {HTMLElement} figure
 * @param {{ title: string, lines: readonly Line[], format: (value: number | null) => string, least: number }} options
 */
export function createChart(figure, { title, lines, format, least }) {
  const place = h('div', { class: 'plot', role: 'img' })
  const figures = lines.map(() => h('b', { class: 'figures' }))
  const legend = lines.map(({ label, colour: property }, line) => h('span', { class: `key ${property.slice(2)}` }, `${label} `, figures[line] ?? ''))
  const when = h('span', { class: 'when' })
  figure.replaceChildren(h('figcaption', {}, h('strong', {}, title), ...legend, when), place)
  /** @type {uPlot | undefined} */
  let plot
  /** @type {[times: number[], ...Values]} */
  let data = [[], ...lines.map(() => [])]

  const describe = (/** @type {number | null | undefined} */ index) => {
    const isNow = index === null || index === undefined
    for (const [line, element] of figures.entries()) {
      const values = data[line + 1] ?? []
      element.textContent = format(isNow ? newest(values) : (values[index] ?? null))
    }
    when.textContent = isNow ? 'now' : `at ${clock(data[0][index] ?? 0)}`
  }
  const build = () => {
    plot?.destroy()
    const axis = { stroke: colour('--muted'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '11px system-ui, sans-serif' }
    plot = new uPlot(
      {
        width: Math.max(place.clientWidth, 50),
        height: 160,
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 }, sync: { key: cursors.key } },
        scales: { x: { range: seenSoFar }, y: { range: fromZero(least) } },
        axes: [
          { ...axis, space: 70, size: 26, values: (_, ticks) => ticks.map(clock) },
          { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => format(tick).replace('.0', '')) },
        ],
        series: [{}, ...lines.map(seriesOf)],
        hooks: { setCursor: [(self) => describe(self.cursor.idx)] },
      },
      /** @type {uPlot.AlignedData} */ (data),
      place,
    )
  }
  build()
  dark.addEventListener('change', build)
  new ResizeObserver(() => plot?.setSize({ width: Math.max(place.clientWidth, 50), height: 160 })).observe(place)

  return {
    /**
     * @param {number[]} times
     * @param {Values} values
     */
    show(times, ...values) {
      data = [times, ...values]
      plot?.setData(/** @type {uPlot.AlignedData} */ (data))
      describe(plot?.cursor.idx)
      const summary = lines.map(({ label }, line) => `${label} now ${format(newest(values[line] ?? []))}, at most ${format(highest(values[line] ?? []))}`)
      place.setAttribute('aria-label', `${title} in the last minutes: ${summary.join('; ')}`)
    },
  }
}

/** @type {WeakMap<Element, (isVisible: boolean) => void>} */
const watched = new WeakMap()
const visibility = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) watched.get(target)?.(isIntersecting)
}, { rootMargin: '300px' })

/**
 * A line in a row of a table; only drawn while it is on the screen. The figure beside it is its text.
 *
 * @param {Line} line
 * @param {number} least
 */
export function createSpark(line, least) {
  const element = h('div', { class: 'spark', 'aria-hidden': 'true' })
  /** @type {uPlot | undefined} */
  let plot
  let isVisible = false
  /** @type {[number[], (number | null)[]]} */
  let data = [[], []]
  const draw = () => {
    if (!isVisible) return
    const width = element.clientWidth
    if (width === 0) return
    if (plot === undefined) {
      const nothing = { show: false }
      plot = new uPlot(
        {
          width,
          height: 28,
          padding: [2, 0, 2, 0],
          legend: nothing,
          cursor: nothing,
          select: { show: false, left: 0, top: 0, width: 0, height: 0 },
          scales: { x: { range: seenSoFar }, y: { range: fromZero(least) } },
          axes: [nothing, nothing],
          series: [{}, seriesOf(line)],
        },
        data,
        element,
      )
    } else {
      if (plot.width !== width) plot.setSize({ width, height: 28 })
      plot.setData(data)
    }
  }
  const remove = () => {
    plot?.destroy()
    plot = undefined
  }
  const redraw = () => {
    remove()
    draw()
  }
  watched.set(element, (nowVisible) => {
    isVisible = nowVisible
    if (isVisible) draw()
    else remove()
  })
  visibility.observe(element)
  dark.addEventListener('change', redraw)
  return {
    element,
    /**
     * @param {number[]} times
     * @param {(number | null)[]} values
     */
    show(times, values) {
      data = [times, values]
      draw()
    },
    destroy() {
      visibility.unobserve(element)
      dark.removeEventListener('change', redraw)
      remove()
    },
  }
}
