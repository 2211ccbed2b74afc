import { badge, h, muted, show, showTable, stack, time } from './elements.js'
import { ago, bytes, number, seconds } from './format.js'
import { lateSeconds } from './counters.js'
import { createMore } from './more.js'

/**
 * @import { DashboardData } from '../src/http/dashboard.ts'
 * @import { ConsumerStatus, QueueStatus, Status } from '../src/status.ts'
 * @import { State } from './elements.js'
 */

const shownHotKeys = 12
/** An empty slot is the first page of its index. */
const emptyBytes = 2 * 8192

/**
 * @param {HTMLElement} place
 * @param {HTMLElement} note
 * @param {DashboardData['hotKeys']} hotKeys
 * @param {string | undefined} selected
 */
export function showHotKeys(place, note, hotKeys, selected) {
  if (hotKeys === null) {
    show(note, 'No worker runs in this process.')
    place.replaceChildren()
    return
  }
  const keys = hotKeys.keys.filter(({ counter }) => selected === undefined || counter === selected).slice(0, shownHotKeys)
  const most = keys[0]?.events ?? 0
  show(
    note,
    `The most events${selected === undefined ? '' : ` of ${selected}`} in what this worker has applied in the last ${hotKeys.windowSeconds} s, as far as somebody was looking on.`,
    ...(keys.length === 0 ? [' None so far.'] : []),
  )
  if (keys.length === 0) {
    place.replaceChildren()
    return
  }
  showTable(
    place,
    'Hot keys',
    [{ label: 'Key' }, { label: 'Counter' }, { label: 'Events', figures: true }, { label: 'Change', figures: true, title: 'what was added to the count' }],
    keys.map(({ key, counter, events, delta }) => {
      const bar = h('span', { class: 'bar', 'aria-hidden': 'true' })
      bar.style.setProperty('--share', `${Math.round((events / most) * 100)}%`)
      return [[h('code', { class: 'clip' }, key)], [h('span', { class: 'clip' }, counter)], [number(events), bar], [`${delta > 0 ? '+' : ''}${number(delta)}`]]
    }),
  )
}

/**
 * @param {QueueStatus} queue
 * @param {number} slot
 */
function describeSlot({ slotBytes, slotWaitsFor, currentSlot }, slot) {
  const size = slotBytes[slot] ?? 0
  const waitsFor = slotWaitsFor[slot] ?? []
  const largest = Math.max(...slotBytes, 1)
  const isEmpty = size <= emptyBytes && waitsFor.length === 0
  const bar = h('span', { class: 'bar', 'aria-hidden': 'true' })
  bar.style.setProperty('--share', isEmpty ? '0%' : `${Math.max(Math.round((size / largest) * 100), 1)}%`)
  /** @type {(Node | string)[]} */
  let what = [muted('is emptied soon')]
  if (slot === currentSlot) what = [h('strong', {}, 'is written')]
  else if (waitsFor.length > 0) what = [h('span', { class: 'waits' }, `waits for ${waitsFor.join(', ')}`)]
  else if (isEmpty) what = [muted('empty')]
  return [stack(h('span', { class: 'figures' }, isEmpty ? '–' : bytes(size)), bar, ...what)]
}

/**
 * The slots of each queue; those first that wait for somebody, then the largest.
 *
 * @param {HTMLElement} place
 * @param {HTMLElement} more
 */
export function createQueues(place, more) {
  /** @type {readonly QueueStatus[]} */
  let queues = []
  const waits = (/** @type {QueueStatus} */ { slotWaitsFor, currentSlot }) => Number(slotWaitsFor.some((names, slot) => slot !== currentSlot && names.length > 0))
  const size = (/** @type {QueueStatus} */ { slotBytes }) => slotBytes.reduce((sum, bytesOfOne) => sum + bytesOfOne, 0)
  const draw = () => {
    const inOrder = queues.toSorted((one, other) => waits(other) - waits(one) || size(other) - size(one))
    showTable(
      place,
      'Queues',
      [{ label: 'Queue' }, { label: 'Slot 0' }, { label: 'Slot 1' }, { label: 'Slot 2' }],
      firstOf(inOrder).map((queue) => [
        [stack(h('strong', { class: 'clip' }, queue.name), muted(`${queue.keyType} · ${seconds(queue.rotationPeriodSeconds)} a slot`))],
        ...[0, 1, 2].map((slot) => describeSlot(queue, slot)),
      ]),
    )
  }
  const firstOf = createMore(more, { noun: 'queue', first: () => 8, redraw: draw })
  /** @param {Status} status */
  return (status) => {
    queues = status.queues
    draw()
  }
}

/**
 * @param {ConsumerStatus} consumer
 * @returns {State}
 */
export function consumerState(consumer) {
  if (consumer.lastError !== null) return { level: 'error', word: 'failing' }
  if (consumer.pausedAt !== null) return { level: 'paused', word: 'paused' }
  if (consumer.deadLetters > 0) return { level: 'warn', word: 'dead letters' }
  if (consumer.lagSeconds > lateSeconds) return { level: 'warn', word: 'behind' }
  return { level: 'ok', word: 'ok' }
}

/**
 * @param {HTMLElement} place
 * @param {Status} status
 */
export function showConsumers(place, { consumers, readAt }) {
  if (consumers.length === 0) {
    place.replaceChildren(h('p', { class: 'muted' }, 'There are none but the counters.'))
    return
  }
  showTable(
    place,
    'Consumers',
    [
      { label: 'Consumer' },
      { label: 'State' },
      { label: 'Pending', figures: true },
      { label: 'Lag', figures: true },
      { label: 'Open', figures: true, title: 'batches that were given and are not finished' },
      { label: 'Retrying', figures: true, title: 'events that failed and will be given again' },
      { label: 'Dead', figures: true, title: 'events that were given up: dead letters' },
    ],
    consumers.map((consumer) => [
      [stack(h('strong', { class: 'clip' }, consumer.name), muted(`of ${consumer.queue}`))],
      [
        stack(
          badge(consumerState(consumer)),
          ...(consumer.pausedAt === null ? [] : [muted('since ', time(consumer.pausedAt, ago(consumer.pausedAt, readAt)))]),
          ...(consumer.lastError === null ? [] : [h('span', { class: 'said' }, consumer.lastError)]),
        ),
      ],
      [number(consumer.pendingEvents)],
      [seconds(consumer.lagSeconds)],
      [number(consumer.openBatches)],
      [number(consumer.retryingEvents)],
      [number(consumer.deadLetters)],
    ]),
  )
}

/**
 * @param {HTMLElement} place
 * @param {Status} status
 */
export function showDeadLetters(place, { latestDeadLetters, consumers, readAt }) {
  const count = consumers.reduce((sum, { deadLetters }) => sum + deadLetters, 0)
  if (count === 0) {
    place.replaceChildren(h('p', { class: 'muted' }, 'There are none.'))
    return
  }
  const table = h('div')
  showTable(
    table,
    'Dead letters',
    [{ label: 'Number', figures: true }, { label: 'Consumer' }, { label: 'Key' }, { label: 'Failed' }, { label: 'Reason' }],
    latestDeadLetters.map(({ number: letter, queue, consumer, key, attempts, failedAt, reason }) => [
      [letter],
      [stack(h('span', { class: 'clip' }, consumer), muted(`of ${queue}`))],
      [h('code', { class: 'clip' }, key)],
      [stack(time(failedAt, ago(failedAt, readAt)), muted(`after ${number(attempts)}×`))],
      [h('span', { class: 'said' }, reason)],
    ]),
  )
  show(place, h('p', { class: 'note' }, h('strong', {}, number(count)), muted(latestDeadLetters.length < count ? `, the latest ${number(latestDeadLetters.length)} here` : ', the latest first')), table)
}
