import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import path from 'node:path'

import { SaxesParser } from 'saxes'

export interface Post {
  id: number
  /** ISO 8601 in UTC. */
  createdAt: string | null
  /** What the dump says that its votes add up to. */
  score: number | null
  /** Each once. Answers have none. */
  tags: readonly string[]
}

export interface Vote {
  id: number
  postId: number
  /** 2 is up, 3 is down; no other type changes a post's score. */
  type: number
  castAt: string | null
  /** Where it stands in the file. */
  line: number
}

/** The files of the dump are not what they should be. The message names file and line. */
export class DumpError extends Error {
  override readonly name = 'DumpError'
}

/** The two files that a replay needs of a site. @throws DumpError when one is missing */
export async function openDump(directory: string): Promise<{ posts: DumpFile<Post>; votes: DumpFile<Vote> }> {
  return {
    posts: await openFile(directory, 'Posts.xml', (row) => ({
      id: row.requiredNumber('Id', Number.MAX_SAFE_INTEGER),
      createdAt: row.date('CreationDate'),
      score: row.number('Score', 2 ** 31 - 1),
      tags: row.tags('Tags'),
    })),
    votes: await openFile(directory, 'Votes.xml', (row) => ({
      id: row.requiredNumber('Id', Number.MAX_SAFE_INTEGER),
      postId: row.requiredNumber('PostId', Number.MAX_SAFE_INTEGER),
      type: row.requiredNumber('VoteTypeId', 2 ** 15 - 1),
      castAt: row.date('CreationDate'),
      line: row.line,
    })),
  }
}

async function openFile<T>(directory: string, name: string, parse: (row: Row) => T): Promise<DumpFile<T>> {
  const file = path.join(directory, name)
  try {
    return new DumpFile(name, file, (await stat(file)).size, parse)
  } catch (cause) {
    throw new DumpError(`There is no ${file}. Name the directory that holds the unpacked Posts.xml and Votes.xml of one site.`, { cause })
  }
}

/** A file of the dump: one `<row>` with attributes for each post or vote. */
export class DumpFile<T> {
  readonly name: string
  readonly #path: string
  readonly #bytes: number
  readonly #parse: (row: Row) => T
  #bytesRead = 0

  constructor(name: string, file: string, bytes: number, parse: (row: Row) => T) {
    this.name = name
    this.#path = file
    this.#bytes = bytes
    this.#parse = parse
  }

  /** From 0 to 1. */
  get shareRead(): number {
    return this.#bytes === 0 ? 1 : this.#bytesRead / this.#bytes
  }

  /**
   * The rows in the file's order. Nothing is read ahead of whoever takes them but one piece of the file, so the file may be of any size.
   *
   * @throws DumpError
   */
  async *rows(): AsyncGenerator<T, void, undefined> {
    const parser = new SaxesParser({ fileName: this.name, xmlns: false })
    let rows: T[] = []
    parser.on('opentag', ({ name, attributes }) => {
      if (name === 'row') rows.push(this.#parse(new Row(this.name, parser.line, attributes)))
    })
    const parsed = (work: () => void): T[] => {
      rows = []
      try {
        work()
      } catch (cause) {
        if (cause instanceof DumpError || !(cause instanceof Error)) throw cause
        throw new DumpError(`${cause.message} Is this the whole file, as it was unpacked?`, { cause })
      }
      return rows
    }

    const stream = createReadStream(this.#path, { encoding: 'utf8' })
    let held = ''
    for await (const piece of stream as AsyncIterable<string>) {
      this.#bytesRead = stream.bytesRead
      const text = held + piece
      const complete = endOfCompleteReferences(text)
      held = text.slice(complete)
      yield* parsed(() => parser.write(replaceIllegalReferences(text.slice(0, complete))))
    }
    yield* parsed(() => parser.write(held).close())
  }
}

/** Where the text ends, without a reference like `&#x1F;` that it may have cut in two. */
function endOfCompleteReferences(text: string): number {
  const start = text.lastIndexOf('&')
  const cut = start > text.length - 16 && !text.includes(';', start)
  return cut ? start : text.length
}

/**
 * The dumps' writer does not check characters: in the texts of posts it lets through control characters that XML 1.0 forbids
 * even as references. A parser must refuse them; here nobody reads those texts.
 */
function replaceIllegalReferences(text: string): string {
  return text.replaceAll(/&#(x?)([0-9a-f]+);/gi, (reference: string, hexadecimal: string, digits: string) => {
    const code = Number.parseInt(digits, hexadecimal === '' ? 10 : 16)
    const legal = code >= 0x20 ? code < 0xd800 || (code > 0xdfff && code < 0xfffe) || code > 0xffff : code === 9 || code === 10 || code === 13
    return legal ? reference : '\u{fffd}'
  })
}

class Row {
  readonly line: number
  readonly #file: string
  readonly #attributes: Readonly<Record<string, string>>

  constructor(file: string, line: number, attributes: Readonly<Record<string, string>>) {
    this.#file = file
    this.line = line
    this.#attributes = attributes
  }

  number(name: string, greatest: number): number | null {
    const text = this.#attributes[name]
    if (text === undefined) return null
    const number = Number(text)
    if (!/^[+-]?\d+$/.test(text) || Math.abs(number) > greatest) {
      throw this.#error(`${name} is "${text}", and not a whole number up to ${greatest}`)
    }
    return number
  }

  requiredNumber(name: string, greatest: number): number {
    const number = this.number(name, greatest)
    if (number === null) throw this.#error(`the row has no ${name}`)
    return number
  }

  /** The dump's dates are in UTC and do not say so. */
  date(name: string): string | null {
    const text = this.#attributes[name]
    if (text === undefined) return null
    const inUtc = !text.includes('T') || text.endsWith('Z') ? text : `${text}Z`
    const date = new Date(/^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?Z?)?$/.test(text) && !text.startsWith('0000') ? inUtc : Number.NaN)
    // Date takes the 31st of a shorter month for the 1st of the next.
    if (Number.isNaN(date.getTime()) || !date.toISOString().startsWith(text.slice(0, 10))) {
      throw this.#error(`${name} is "${text}", and not a date like 2011-08-17T20:18:56.507`)
    }
    return date.toISOString()
  }

  /** `<one><two>`, or `|one|two|` as newer dumps write it. */
  tags(name: string): string[] {
    const text = this.#attributes[name] ?? ''
    if (!/^(<[^<>|\s"\\]+>)*$|^\|([^<>|\s"\\]+\|)+$/.test(text)) throw this.#error(`${name} is "${text}", and not tags like <one><two> or |one|two|`)
    return [...new Set(text.match(/[^<>|]+/g))]
  }

  #error(message: string): DumpError {
    return new DumpError(`${this.#file}:${this.line}: ${message}.`)
  }
}
