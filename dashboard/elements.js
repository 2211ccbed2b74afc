/** Elements of the page. Whatever comes from the database becomes text nodes and attributes, never markup. */

/** @typedef {'ok' | 'warn' | 'error' | 'paused'} Level */
/** @typedef {{ level: Level, word: string }} State */
/** @typedef {(Node | string)[]} Content */

/**
 * @param {string} tag
 * @param {Record<string, string | number | boolean | undefined>} [attributes]
 * @param {Content} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : String(value))
  }
  element.append(...children)
  return element
}

/**
 * The element of the page that has this id.
 *
 * @template {typeof HTMLElement} T
 * @param {string} id
 * @param {T} [type]
 * @returns {InstanceType<T>}
 */
export function byId(id, type) {
  const element = document.getElementById(id)
  if (!(element instanceof (type ?? HTMLElement))) throw new Error(`The page has no ${id}`)
  return /** @type {InstanceType<T>} */ (element)
}

/**
 * Makes these the children of `parent`. Those that are there already stay, so that what a reader has selected or focused does.
 *
 * @param {Element} parent
 * @param {Content} children
 */
export function show(parent, ...children) {
  const fresh = children.map((child) => (typeof child === 'string' ? document.createTextNode(child) : child))
  for (const [index, node] of fresh.entries()) {
    const old = parent.childNodes[index]
    if (old === undefined) parent.append(node)
    else if (old !== node && !old.isEqualNode(node)) old.replaceWith(node)
  }
  while (parent.childNodes.length > fresh.length) parent.lastChild?.remove()
}

const glyphs = { ok: '✓', warn: '!', error: '✕', paused: 'Ⅱ' }

/** @param {State} state */
export function badge({ level, word }) {
  return h('span', { class: `state ${level}` }, h('span', { 'aria-hidden': 'true', class: 'glyph' }, glyphs[level]), ` ${word}`)
}

/**
 * A number of parts above one another.
 *
 * @param {Content} parts
 */
export const stack = (...parts) => h('div', { class: 'stack' }, ...parts)

/** @param {Content} content */
export const muted = (...content) => h('span', { class: 'muted' }, ...content)

/**
 * @param {string} iso
 * @param {string} text
 */
export const time = (iso, text) => h('time', { datetime: iso, title: iso }, text)

/**
 * @typedef {object} Column
 * @property {string} label
 * @property {boolean} [figures] aligned to the right
 * @property {string} [title] what it means
 */

/**
 * A table that is a list of cards on a phone; the roles keep it a table for who does not see it.
 *
 * @param {string} label
 * @param {readonly Column[]} columns
 */
export function tableHead(label, columns) {
  const head = h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, ...columns.map((column) => h('th', { role: 'columnheader', scope: 'col', class: column.figures && 'figures', title: column.title }, column.label))))
  const table = document.createElement('table')
  table.setAttribute('role', 'table')
  table.setAttribute('aria-label', label)
  table.className = label.toLowerCase().replaceAll(' ', '-')
  table.append(head)
  return table
}

/**
 * @param {Column} column
 * @param {Content} content
 */
export const cell = (column, ...content) => h('td', { role: 'cell', class: column.figures && 'figures', 'data-label': column.label }, ...content)

/**
 * @param {Element} parent
 * @param {string} label
 * @param {readonly Column[]} columns
 * @param {readonly (readonly Content[])[]} rows each with the content of its cells
 */
export function showTable(parent, label, columns, rows) {
  const table = tableHead(label, columns)
  const cells = (/** @type {readonly Content[]} */ row) => columns.map((column, index) => cell(column, ...(row[index] ?? [])))
  const body = h('tbody', { role: 'rowgroup' }, ...rows.map((row) => h('tr', { role: 'row' }, ...cells(row))))
  const old = parent.querySelector(':scope > table > tbody')
  if (old !== null && parent.children.length === 1) show(old, ...body.children)
  else {
    table.append(body)
    parent.replaceChildren(table)
  }
}
