/** How likes are spread over keys, in SQL. A key's place says where it comes by its count. */
export interface KeySpread {
  id: string
  title: string
  /** The count at the place n. */
  count: string
  /** The place of a key that is liked now. */
  place: string
}

export const zipf = (keys: number): KeySpread => ({
  id: 'zipf',
  title: "counts by Zipf's law",
  count: `ceil(${keys}::numeric / n)`,
  // Of density 1/n.
  place: `floor(exp(random() * ln(${keys} + 1)))`,
})

/** No key stands out: the worst case for whoever looks for the first. */
export const uniform = (keys: number): KeySpread => ({ id: 'uniform', title: `counts from 1 to ${keys.toLocaleString('en-US')}`, count: 'n', place: `1 + floor(random() * ${keys})` })

/** The key at a place. Neighbours lie far apart: the factor, a prime, has none in common with the number of keys. */
export const keyAt = (place: string, keys: number) => `1 + (${place})::bigint * 7919 % ${keys}`
