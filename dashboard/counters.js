import { createSpark } from './charts.js'
import { badge, cell, h, muted, show, stack, tableHead, time } from './elements.js'
import { ago, dateAndTime, number, rate, seconds } from './format.js'
import { newest } from './history.js'
import { createMore } from './more.js'

/**
 * @import { AuditStatus, CounterStatus, Status } from '../src/status.ts'
 * @import { Column, State } from './elements.js'
 * @import { History } from './history.js'
 */

/** A counter that is this far behind needs somebody to look. */
export const lateSeconds = 10
const narrow = window.matchMedia('(max-width: 900px)')

/** @type {Record<string, Column>} */
const columns = {
  name: { label: 'Counter' },
  rate: { label: 'Applied', figures: true, title: 'events per second, in the last five minutes' },
  lag: { label: 'Lag', figures: true, title: 'age of the oldest event that is not applied, in the last five minutes' },
  pending: { label: 'Pending', figures: true, title: 'events that are not applied yet' },
  carried: { label: 'Carried', figures: true, title: 'keys of which something waits for a locked row' },
  events: { label: 'Total', figures: true, title: 'events applied since the counter was made' },
  dropped: { label: 'Dropped', figures: true, title: 'events whose key had no row in the target' },
  audit: { label: 'Last audit', title: 'keys that drifted, of those that were checked' },
}

/**
 * The drift that is not known to be corrected.
 *
 * @param {CounterStatus} counter
 */
export function driftingKeys({ lastAudit, lastSample }) {
  const sampleIsNewer = lastSample !== null && (lastAudit === null || lastSample.at > lastAudit.at)
  const [complete, sample] = [lastAudit, sampleIsNewer ? lastSample : null].map((audit) => (audit === null || audit.corrected ? 0 : audit.driftingKeys))
  return Math.max(complete ?? 0, sample ?? 0)
}

/**
 * @param {CounterStatus} counter
 * @returns {State}
 */
export function stateOf(counter) {
  if (counter.lastError !== null) return { level: 'error', word: 'failing' }
  if (counter.problems.length > 0) return { level: 'error', word: 'problem' }
  if (driftingKeys(counter) > 0) return { level: 'error', word: 'drifting' }
  if (counter.lagSeconds > lateSeconds) return { level: 'warn', word: 'behind' }
  return { level: 'ok', word: 'ok' }
}

/**
 * @param {AuditStatus} audit
 * @param {string} keys
 * @param {string} now
 */
function describeAudit({ at, checkedKeys, driftingKeys: drifting, corrected }, keys, now) {
  const found = drifting === 0 ? 'no drift' : `${number(drifting)} ${corrected ? 'corrected' : 'drifting'}`
  return stack(h('span', { class: drifting > 0 && !corrected ? 'bad' : undefined }, found), muted(`${number(checkedKeys)} ${keys}, `, time(at, ago(at, now))))
}

/**
 * @param {CounterStatus} counter
 * @param {string} now
 */
function describeAudits({ source, lastAudit, lastSample }, now) {
  const parts = []
  if (lastAudit !== null) parts.push(describeAudit(lastAudit, 'keys', now))
  if (lastSample !== null && (lastAudit === null || lastSample.at > lastAudit.at)) parts.push(describeAudit(lastSample, 'sampled', now))
  return parts.length > 0 ? parts : [muted(source === null ? 'has no source' : 'not audited')]
}

/** @param {(name: string) => void} select */
function createRow(/** @type {string} */ name, select) {
  const title = h('button', { type: 'button', class: 'name', title: 'Show it in the charts above' }, name)
  title.addEventListener('click', () => select(name))
  const below = muted()
  const state = h('span')
  const [rateText, lagText] = [h('span'), h('span')]
  const rateSpark = createSpark({ label: 'applied', colour: '--applied', filled: true }, 1)
  const lagSpark = createSpark({ label: 'lag', colour: '--lag', filled: true }, 1)
  const cells = {
    name: cell(/** @type {Column} */ (columns['name']), h('div', { class: 'who' }, state, stack(title, below))),
    rate: cell(/** @type {Column} */ (columns['rate']), h('div', { class: 'drawn' }, rateText, rateSpark.element)),
    lag: cell(/** @type {Column} */ (columns['lag']), h('div', { class: 'drawn' }, lagText, lagSpark.element)),
    .../** @type {Record<'pending' | 'carried' | 'events' | 'dropped' | 'audit', HTMLElement>} */ (
      Object.fromEntries(Object.entries(columns).slice(3).map(([key, column]) => [key, cell(column)]))
    ),
  }
  const figures = h('tr', { role: 'row' }, ...Object.values(cells))
  const messages = h('td', { role: 'cell', colspan: Object.keys(columns).length })
  const messageRow = h('tr', { role: 'row', class: 'messages' }, messages)
  const element = h('tbody', { role: 'rowgroup', class: 'counter' }, figures)

  return {
    element,
    destroy() {
      rateSpark.destroy()
      lagSpark.destroy()
    },
    /**
     * @param {CounterStatus} counter
     * @param {History} history
     * @param {string} now
     * @param {boolean} isSelected
     */
    show(counter, history, now, isSelected) {
      const { applied, lag } = history.of(name)
      show(state, badge(stateOf(counter)))
      title.setAttribute('aria-pressed', String(isSelected))
      show(below, `${counter.source ?? counter.queue} → ${counter.target}`)
      show(rateText, rate(newest(applied)))
      show(lagText, seconds(counter.lagSeconds))
      lagText.className = counter.lagSeconds > lateSeconds ? 'bad' : ''
      rateSpark.show(history.times, applied)
      lagSpark.show(history.times, lag)
      show(cells.pending, number(counter.pendingEvents))
      show(cells.carried, number(counter.carriedKeys))
      show(cells.events, number(counter.events))
      show(cells.dropped, number(counter.droppedEvents))
      show(cells.audit, ...describeAudits(counter, now))
      const said = counter.problems.map((problem) => h('p', {}, problem))
      if (counter.lastError !== null) said.unshift(h('p', {}, h('strong', {}, `Cannot go on${counter.lastErrorAt === null ? '' : ` (${dateAndTime(counter.lastErrorAt)})`}: `), counter.lastError))
      show(messages, ...said)
      if (said.length > 0) element.append(messageRow)
      else messageRow.remove()
    },
  }
}

const ranks = { error: 0, warn: 1, paused: 2, ok: 3 }

/** @type {Record<string, (history: History) => (one: CounterStatus, other: CounterStatus) => number>} */
const orders = {
  trouble: () => (one, other) => ranks[stateOf(one).level] - ranks[stateOf(other).level],
  name: () => () => 0,
  rate: (history) => (one, other) => (newest(history.of(other.name).applied) ?? 0) - (newest(history.of(one.name).applied) ?? 0),
  lag: () => (one, other) => other.lagSeconds - one.lagSeconds,
  pending: () => (one, other) => other.pendingEvents - one.pendingEvents,
}

/**
 * The table of counters: those with trouble first, a few of them at first.
 *
 * @param {{ place: HTMLElement, filter: HTMLInputElement, order: HTMLSelectElement, more: HTMLElement }} elements
 * @param {(name: string) => void} select
 */
export function createCounters({ place, filter, order, more }, select) {
  const table = tableHead('Counters', Object.values(columns))
  place.append(table)
  const nothing = h('p', { class: 'muted' }, 'No counter has that in its name or tables.')
  /** @type {Map<string, ReturnType<typeof createRow>>} */
  const rows = new Map()
  let draw = () => {}
  const firstOf = createMore(more, { noun: 'counter', first: () => (narrow.matches ? 8 : 20), redraw: () => draw() })
  filter.addEventListener('input', () => draw())
  order.addEventListener('change', () => draw())

  /**
   * @param {Status} status
   * @param {History} history
   * @param {string | undefined} selected
   */
  return (status, history, selected) => {
    draw = () => {
      const wanted = filter.value.trim().toLowerCase()
      const found = status.counters.filter(({ name, source, target, queue }) => [name, source ?? '', target, queue].some((text) => text.toLowerCase().includes(wanted)))
      const inOrder = found.toSorted(orders[order.value]?.(history))
      const shown = firstOf(inOrder)
      const names = new Set(shown.map(({ name }) => name))
      for (const [name, row] of rows) {
        if (names.has(name)) continue
        row.destroy()
        row.element.remove()
        rows.delete(name)
      }
      for (const [index, counter] of shown.entries()) {
        const row = rows.get(counter.name) ?? createRow(counter.name, select)
        rows.set(counter.name, row)
        const there = table.tBodies[index]
        if (there !== row.element) table.insertBefore(row.element, there ?? null)
        row.show(counter, history, status.readAt, counter.name === selected)
      }
      show(place, ...(found.length === 0 ? [table, nothing] : [table]))
    }
    draw()
  }
}
