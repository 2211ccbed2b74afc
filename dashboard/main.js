import { createChart } from './charts.js'
import { TokenRefused, fetchData, token } from './connection.js'
import { createCounters, driftingKeys, lateSeconds, stateOf } from './counters.js'
import { badge, byId, h, muted, show } from './elements.js'
import { number, rate, seconds, wholeSeconds } from './format.js'
import { History, newest } from './history.js'
import { consumerState, createQueues, showConsumers, showDeadLetters, showHotKeys } from './panels.js'

/**
 * @import { DashboardData } from '../src/http/dashboard.ts'
 * @import { Status } from '../src/status.ts'
 */

const pollMs = 2000
const slowMs = 6000
const patienceMs = 12_000

const history = new History()
const charts = {
  rate: createChart(byId('rate-chart'), {
    title: 'Events per second',
    lines: [
      { label: 'applied', colour: '--applied', filled: true },
      { label: 'written', colour: '--written', dashed: true },
    ],
    format: rate,
    least: 1,
  }),
  lag: createChart(byId('lag-chart'), { title: 'Lag', lines: [{ label: 'lag', colour: '--lag', filled: true }], format: seconds, least: 1 }),
}
/** @type {string | undefined} the counter in the charts; all of them where there is none */
let selected
/** @type {DashboardData | undefined} */
let data
/** When what is shown was read, as of performance.now(). */
let readAt = 0
/** @type {string | undefined} */
let trouble
let isPaused = false
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer
let isAsking = false

const showCounters = createCounters(
  { place: byId('counters'), filter: byId('filter', HTMLInputElement), order: byId('order', HTMLSelectElement), more: byId('more') },
  (name) => {
    selected = selected === name ? undefined : name
    draw()
  },
)

const showQueues = createQueues(byId('queues'), byId('more-queues'))

/** @param {Status} status */
function showOverview(status) {
  const { counters, consumers, oldestTransactionSeconds } = status
  const sum = (/** @type {number[]} */ values) => values.reduce((total, value) => total + value, 0)
  const lag = Math.max(0, ...counters.map(({ lagSeconds }) => lagSeconds), ...consumers.map(({ lagSeconds }) => lagSeconds))
  const drifting = sum(counters.map(driftingKeys))
  const deadLetters = sum(consumers.map((consumer) => consumer.deadLetters))
  const audited = counters.filter(({ lastAudit, lastSample }) => lastAudit !== null || lastSample !== null).length
  const tile = (/** @type {string} */ label, /** @type {string} */ value, isBad = false) => h('div', { class: isBad ? 'tile bad' : 'tile' }, h('dt', {}, label), h('dd', { class: 'figures' }, ...(isBad ? [h('span', { 'aria-hidden': 'true' }, '! ')] : []), value))
  show(
    byId('tiles'),
    tile('Applied', rate(newest(history.total.applied))),
    tile('Written', rate(newest(history.total.written))),
    tile('Longest lag', seconds(lag), lag > lateSeconds),
    tile('Pending', number(sum(counters.map(({ pendingEvents }) => pendingEvents)))),
    tile('Carried keys', number(sum(counters.map(({ carriedKeys }) => carriedKeys)))),
    tile('Drifting keys', audited === 0 ? 'not audited' : number(drifting), drifting > 0),
    tile('Dead letters', number(deadLetters), deadLetters > 0),
    tile('Oldest transaction', seconds(oldestTransactionSeconds)),
  )
}

/** @param {Status} status */
function showVerdict({ counters, consumers }) {
  const states = [...counters.map(stateOf), ...consumers.map(consumerState)]
  const [failing, troubled] = ['error', 'warn'].map((level) => states.filter((state) => state.level === level).length)
  const total = (failing ?? 0) + (troubled ?? 0)
  show(byId('verdict'), badge(total === 0 ? { level: 'ok', word: 'all well' } : { level: failing ? 'error' : 'warn', word: `${number(total)} of ${number(states.length)} need attention` }))
  document.title = total === 0 ? 'pgtally' : `(${total}) pgtally`
}

/** @param {DashboardData} answer */
function showProcess({ process: { version, pid, uptimeSeconds, node }, status }) {
  const parts = [`pgtally ${version}`, `process ${pid}`, `up ${wholeSeconds(uptimeSeconds)}`, `Node.js ${node}`, ...(status === null ? [] : [`PostgreSQL ${status.serverVersion}`])]
  show(byId('process'), `This worker: ${parts.join(' · ')}`)
}

function draw() {
  if (data === undefined) return
  showProcess(data)
  const { status, hotKeys } = data
  if (status === null) return
  if (!status.counters.some(({ name }) => name === selected)) selected = undefined
  const isEmpty = status.counters.length + status.queues.length === 0
  byId('empty').hidden = !isEmpty
  byId('content').hidden = isEmpty
  show(byId('database'), status.database)
  showVerdict(status)
  if (isEmpty) return
  showOverview(status)
  show(byId('selected'), selected ?? 'all counters')
  byId('all').hidden = selected === undefined
  const { applied, written, lag } = selected === undefined ? history.total : history.of(selected)
  charts.rate.show(history.times, applied, written)
  charts.lag.show(history.times, lag)
  show(byId('counters-heading'), 'Counters ', muted(number(status.counters.length)))
  showCounters(status, history, selected)
  showHotKeys(byId('hot-keys'), byId('hot-note'), hotKeys, selected)
  showQueues(status)
  showConsumers(byId('consumers'), status)
  showDeadLetters(byId('letters'), status)
}

/** How old the figures are, and why; every second, and so not part of what is read out. */
function showAge() {
  const age = performance.now() - readAt
  const isSlow = readAt > 0 && age > slowMs && !isPaused
  show(byId('age'), readAt === 0 ? '' : `figures ${wholeSeconds(age / 1000)} old`)
  byId('content').classList.toggle('stale', trouble !== undefined)
  byId('trouble').hidden = trouble === undefined
  show(byId('trouble'), ...(trouble === undefined ? [] : [h('strong', {}, trouble), readAt === 0 ? '' : ` What is shown was read ${wholeSeconds(age / 1000)} ago.`]))
  let state = badge({ level: 'ok', word: 'live' })
  if (trouble !== undefined) state = badge({ level: 'error', word: 'no data' })
  else if (isPaused) state = badge({ level: 'paused', word: 'paused' })
  else if (readAt === 0) state = h('span', { class: 'muted' }, byId('login').hidden ? 'asking …' : '')
  else if (isSlow) state = badge({ level: 'warn', word: 'slow' })
  show(byId('connection'), state)
}

/** @param {string} [refusal] */
function askForToken(refusal) {
  token.forget()
  data = undefined
  trouble = undefined
  readAt = 0
  byId('login').hidden = false
  for (const id of ['content', 'empty', 'forget', 'pause']) byId(id).hidden = true
  for (const id of ['database', 'verdict', 'process']) byId(id).replaceChildren()
  document.title = 'pgtally'
  const message = byId('refusal')
  message.hidden = refusal === undefined
  message.textContent = refusal ?? ''
  showAge()
  byId('token', HTMLInputElement).focus()
}

async function poll() {
  clearTimeout(timer)
  if (isAsking || isPaused || document.hidden) return
  isAsking = true
  const asked = token.get()
  // What was under way with a token that has been forgotten since is not shown, whatever it is.
  const isOver = () => token.get() !== asked
  try {
    const answer = await fetchData()
    if (isOver()) return
    data = answer
    byId('login').hidden = true
    byId('pause').hidden = false
    byId('forget').hidden = asked === null
    const isPatient = answer.isLate && answer.status !== null && answer.ageMs < patienceMs
    trouble = answer.error === null || isPatient ? undefined : `The database does not answer: ${answer.error}.`
    if (answer.status !== null) {
      readAt = performance.now() - answer.ageMs
      history.add(answer.status)
    }
    draw()
  } catch (error) {
    if (isOver()) return
    if (error instanceof TokenRefused) return askForToken(asked === null ? undefined : 'That is not the token.')
    trouble = `The worker does not answer; does it run? (${error instanceof Error ? error.message : error})`
  } finally {
    isAsking = false
    if (isOver() && token.get() !== null) void poll()
  }
  showAge()
  timer = setTimeout(() => void poll(), pollMs)
}

byId('login').addEventListener('submit', (event) => {
  event.preventDefault()
  const field = byId('token', HTMLInputElement)
  const text = field.value.trim()
  field.value = ''
  // Others cannot be in a header, nor are they accepted as a token by the worker.
  if (!/^[\x21-\x7E]+$/.test(text)) return askForToken('That is not the token.')
  token.keep(text)
  void poll()
})
byId('forget').addEventListener('click', () => {
  clearTimeout(timer)
  askForToken()
})
byId('pause').addEventListener('click', () => {
  isPaused = !isPaused
  byId('pause').setAttribute('aria-pressed', String(isPaused))
  show(byId('pause'), isPaused ? 'Go on' : 'Pause')
  showAge()
  void poll()
})
byId('all').addEventListener('click', () => {
  selected = undefined
  draw()
})
document.addEventListener('visibilitychange', () => void poll())
setInterval(showAge, 1000)

if (document.body.dataset['token'] === 'needed' && token.get() === null) askForToken()
else void poll()
