import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import type { ClientBase } from 'pg'
import { from as copyFrom } from 'pg-copy-streams'

/** Texts without tabs, line ends and backslashes. */
export type CopyRow = readonly (string | number | null)[]

const bufferLength = 65_536

/** Streams rows into a table, given with its columns, no faster than the server takes them. */
export async function copyInto(client: ClientBase, table: string, rows: AsyncIterable<CopyRow>, signal: AbortSignal): Promise<void> {
  await pipeline(Readable.from(copyText(rows)), client.query(copyFrom(`copy ${table} from stdin`)), { signal })
}

/** Lines of COPY's text format, joined to pieces of some size, as each piece is a message to the server. */
async function* copyText(rows: AsyncIterable<CopyRow>): AsyncGenerator<string, void, undefined> {
  let text = ''
  for await (const row of rows) {
    text += `${row.map((value) => value ?? '\\N').join('\t')}\n`
    if (text.length >= bufferLength) {
      yield text
      text = ''
    }
  }
  yield text
}
