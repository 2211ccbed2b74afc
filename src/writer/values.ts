import type { Key } from '../counters/definition.ts'

type Family = 'integer' | 'uuid' | 'text'

const families: Readonly<Record<string, Family>> = {
  smallint: 'integer',
  integer: 'integer',
  bigint: 'integer',
  uuid: 'uuid',
  text: 'text',
  'character varying': 'text',
}

/** Whether two values of the type are equal for the server exactly if `canonicalKey()` makes the same of them. */
export function isKeyType(base: string): boolean {
  return base in families
}

/** What a column of keys is sent as: the widest of its kind, so that nothing changes when the column becomes wider while a writer runs. */
export function arrayType(base: string): string {
  return { integer: 'int8', uuid: 'uuid', text: 'text' }[familyOf(base)]
}

/** Callers without types pass `null`, `undefined` and numbers that are no longer exact. */
export function isKey(key: unknown): key is Key {
  return typeof key === 'string' || typeof key === 'bigint' || Number.isSafeInteger(key)
}

const decimal = /^(?:0|-?[1-9]\d{0,18})$/
const paddedDecimal = /^\s*\+?(-?)0*(\d{1,19})\s*$/
const lowerCaseUuid = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** The one spelling of a key that has several for the server: 'ABC' and 'abc' of a uuid, '01' and '1'. Undefined where it is no value of the type. */
export function canonicalKey(key: Key, base: string): string | undefined {
  const text = String(key)
  switch (familyOf(base)) {
    case 'integer': {
      if (typeof key !== 'string' || decimal.test(text)) return text
      const [, sign, digits] = paddedDecimal.exec(text) ?? []
      if (digits === undefined) return undefined
      return digits === '0' ? digits : `${sign}${digits}`
    }
    case 'uuid': {
      if (lowerCaseUuid.test(text)) return text
      const digits = text.toLowerCase().replaceAll(/[{}-]/g, '')
      const uuid = digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
      return lowerCaseUuid.test(uuid) ? uuid : undefined
    }
    case 'text':
      // On its way to the server, half of a surrogate pair becomes the same character whichever it was.
      return text.isWellFormed() ? text : text.toWellFormed()
  }
}

function familyOf(base: string): Family {
  return families[base] ?? 'text'
}

/**
 * The value of another column as pg will send it within an array, taken now: objects may change until then, and one that cannot be sent must not
 * spoil the statement of the others. Arrays are JSON for a json column and otherwise one array of PostgreSQL's.
 *
 * @throws TypeError when it cannot be sent
 */
export function encodeValue(value: unknown, base: string): unknown {
  if (Array.isArray(value) && !/^jsonb?$/.test(base)) {
    const items = value.map((item) => encodeItem(item))
    return { toPostgres: (prepare: (value: unknown) => unknown) => prepare(items) }
  }
  return encode(value)
}

function encodeItem(item: unknown): unknown {
  return Array.isArray(item) ? item.map((inner) => encodeItem(inner)) : encode(item)
}

function encode(value: unknown): unknown {
  if (value === undefined || typeof value === 'function' || typeof value === 'symbol') throw new TypeError(`${typeof value} is no value`)
  if (value === null || typeof value !== 'object' || value instanceof Date || ArrayBuffer.isView(value) || 'toPostgres' in value) return value
  return JSON.stringify(value)
}
