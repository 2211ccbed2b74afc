/** Figures and times as the page shows them. */

const whole = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 })
const tenths = new Intl.NumberFormat('en-US', { minimumFractionDigits: 1, maximumFractionDigits: 1 })

/** @param {number} value */
export const number = (value) => whole.format(value)

/** @param {number | null | undefined} perSecond */
export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return '–'
  return `${perSecond === 0 || perSecond >= 100 ? whole.format(perSecond) : tenths.format(perSecond)}/s`
}

/** @param {number | null | undefined} value in seconds */
export function seconds(value) {
  if (value === null || value === undefined) return '–'
  if (value === 0) return '0 s'
  if (value < 1) return `${whole.format(Math.max(value * 1000, 1))} ms`
  if (value < 120) return `${tenths.format(value)} s`
  if (value < 7200) return `${whole.format(value / 60)} min`
  if (value < 172_800) return `${whole.format(value / 3600)} h`
  return `${whole.format(value / 86_400)} days`
}

/**
 * As `seconds()`, where tenths are of no interest.
 *
 * @param {number} value
 */
export const wholeSeconds = (value) => (value < 120 ? `${whole.format(value)} s` : seconds(value))

/** @param {number} value */
export function bytes(value) {
  if (value < 2 ** 20) return `${whole.format(value / 2 ** 10)} kB`
  if (value < 2 ** 30) return `${tenths.format(value / 2 ** 20)} MB`
  return `${tenths.format(value / 2 ** 30)} GB`
}

/** @param {number} epochSeconds */
export const clock = (epochSeconds) => new Date(epochSeconds * 1000).toLocaleTimeString('en-GB')

/**
 * How long ago, as of the database's clock.
 *
 * @param {string} iso
 * @param {string} nowIso
 */
export function ago(iso, nowIso) {
  const passed = Math.max((Date.parse(nowIso) - Date.parse(iso)) / 1000, 0)
  return passed < 1 ? 'just now' : `${wholeSeconds(passed)} ago`
}

/** @param {string} iso */
export function dateAndTime(iso) {
  const date = new Date(iso)
  return `${date.toLocaleDateString('en-CA')} ${date.toLocaleTimeString('en-GB')}`
}

/**
 * @param {number} count
 * @param {string} noun
 */
export const plural = (count, noun) => `${whole.format(count)} ${noun}${count === 1 ? '' : 's'}`
