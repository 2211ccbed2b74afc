import { show } from './elements.js'
import { number, plural } from './format.js'

/**
 * How much of a long list is shown: its beginning, or on demand all of it.
 *
 * @param {HTMLElement} place a span for the words and a button
 * @param {{ noun: string, first: () => number, redraw: () => void }} options
 */
export function createMore(place, { noun, first, redraw }) {
  const [words, button] = [place.querySelector('span'), place.querySelector('button')]
  let showsAll = false
  button?.addEventListener('click', () => {
    showsAll = !showsAll
    redraw()
  })
  /**
   * @template T
   * @param {readonly T[]} items
   * @returns {readonly T[]}
   */
  return (items) => {
    const shown = showsAll ? items : items.slice(0, first())
    place.hidden = items.length <= first()
    if (words !== null) show(words, `${number(shown.length)} of ${plural(items.length, noun)} shown.`)
    if (button !== null) show(button, showsAll ? 'Show fewer' : `Show all ${number(items.length)}`)
    return shown
  }
}
