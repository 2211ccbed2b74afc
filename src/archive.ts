import { randomUUID } from 'node:crypto'
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import path from 'node:path'

import { ByteWriter, ParquetWriter } from 'hyparquet-writer'
import type { z } from 'zod'

import { PgtallyError } from './errors.ts'
import type { HandledBatch } from './queue/batch.ts'
import type { ConsumerDefinition } from './queue/definition.ts'
import type { RawEvent } from './queue/read-events.ts'

type Definition = ConsumerDefinition<z.ZodUnknown, 'at-least-once'>

/** The settings of a consumer, some with other defaults: a file is worth its while from some thousand events on. */
export interface ArchiveOptions extends Omit<Definition, 'mode' | 'schema' | 'maxAttempts' | 'handler' | 'each'> {
  /** Where the files are written, below a directory for each date. It must be there. */
  directory: string
  /** A file has no more events than this, but never less than one transaction's. Default 1 000 000. */
  maxEvents?: number | undefined
  /** Wait for so many events … Default 100 000, or `maxEvents` if that is less. */
  minEvents?: number | undefined
  /** … but no longer than this after the first of them, in ms: there is a file so often at most. Events stay in the queue until then. Default 300 000. */
  maxWaitMs?: number | undefined
  /** Default 600 000, in ms. */
  timeoutMs?: number | undefined
  /** Default 1000, in ms. */
  pollIntervalMs?: number | undefined
}

/**
 * A consumer that writes all events of a queue to Parquet files, one for each batch and date (UTC, of the event's time):
 * `directory/date=2026-11-21/<queue>-<batch>-<token>.parquet`.
 *
 * Columns: `id`, `transaction_id`, `time` (UTC, in microseconds), `key`, `delta`, `data` (JSON as text). All are exact to the last digit.
 *
 * A file is there whole or not at all, and on disk before its batch is finished. A batch that is given again, after a crash, replaces its own files: each event is in
 * one file. Two databases, or a database and its restored copy, never write to the same file: a batch's `token` is random, and comes with it when it is given again.
 *
 * While the directory cannot be written, the events wait in the queue; `status()` says why.
 *
 * @throws PgtallyError INVALID_ARGUMENT (no directory); what else will not do, `tally.consumer()` says
 *
 * @example
 * ```ts
 * import { archive } from 'pgtally/archive'
 *
 * await using archiver = tally.consumer(archive({ queue: 'post_likes', name: 'archive', directory: '/var/lib/likes' }))
 * // in DuckDB: select key, sum(delta) from '/var/lib/likes/date=2026-11-21/*.parquet' group by key
 * ```
 */
export function archive({ directory, ...settings }: ArchiveOptions): Definition {
  if (typeof directory !== 'string' || directory === '') throw new PgtallyError('INVALID_ARGUMENT', 'archive() needs the directory to write to: archive({ directory, queue, name }).')
  const root = path.resolve(directory)
  const { maxEvents = 1_000_000, minEvents = Math.min(100_000, maxEvents), maxWaitMs = 300_000, timeoutMs = 600_000, pollIntervalMs = 1000 } = settings
  return {
    ...settings,
    maxEvents,
    minEvents,
    maxWaitMs,
    timeoutMs,
    pollIntervalMs,
    mode: 'at-least-once',
    handler: (batch) => writeBatch(root, settings, batch as HandledBatch),
  }
}

async function writeBatch(root: string, { queue, name }: { queue: string; name: string }, batch: HandledBatch): Promise<void> {
  const metadata = JSON.stringify({ queue, consumer: name, batch: batch.id, token: batch.token })
  const fileName = `${safe(queue)}-${batch.id}-${batch.token.replaceAll('-', '')}.parquet`
  const files = new Map<string, BatchFile>()
  // Apart from what the server does: its errors are not the directory's.
  const onDisk = async <T>(work: Promise<T>): Promise<T> => {
    try {
      return await work
    } catch (cause) {
      batch.signal.throwIfAborted()
      throw new Error(`The archive cannot write to ${root} (${(cause as Error).message}). Its events wait in the queue: make it a directory that this process may write to, with space left`, { cause })
    }
  }
  try {
    for await (const page of batch.rawPages()) {
      for (const [date, events] of Map.groupBy(page, dateOf)) {
        const file = files.get(date) ?? (await onDisk(BatchFile.create(path.join(root, `date=${date}`), fileName, metadata)))
        files.set(date, file)
        await onDisk(file.write(events))
      }
    }
    for (const file of files.values()) await onDisk(file.finish())
    // The directories of new dates.
    await onDisk(syncDirectory(root))
    // Of attempts that were killed. Of one that is still at it, as its process was stopped: it has lost the batch, and fails.
    if (batch.attempt > 1) for (const date of files.keys()) await onDisk(removeTemporaryFiles(path.join(root, `date=${date}`), fileName))
  } finally {
    for (const file of files.values()) await file.discard()
  }
}

/** A Parquet file under a temporary name, until it is whole. Readers pass over names that begin with a dot. */
class BatchFile {
  readonly #directory: string
  readonly #name: string
  readonly #temporary: string
  readonly #handle: FileHandle
  readonly #bytes = new ByteWriter()
  readonly #parquet: ParquetWriter

  static async create(directory: string, name: string, metadata: string): Promise<BatchFile> {
    await mkdir(directory).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error
    })
    const temporary = path.join(directory, `${temporaryPrefix(name)}${randomUUID()}`)
    return new BatchFile(directory, name, temporary, await open(temporary, 'wx'), metadata)
  }

  private constructor(directory: string, name: string, temporary: string, handle: FileHandle, metadata: string) {
    this.#directory = directory
    this.#name = name
    this.#temporary = temporary
    this.#handle = handle
    this.#parquet = new ParquetWriter({ writer: this.#bytes, schema, kvMetadata: [{ key: 'pgtally', value: metadata }], createdBy: 'pgtally' })
  }

  /** As a row group of its own, so that no more than that is in memory. */
  async write(events: readonly RawEvent[]): Promise<void> {
    const data = {
      id: events.map(([id]) => id),
      transaction_id: events.map(([id]) => BigInt(id.slice(0, id.indexOf('.')))),
      time: events.map(([, time]) => BigInt(time)),
      key: events.map(([, , key]) => key),
      delta: events.map(([, , , delta]) => BigInt(delta)),
      data: events.map(([, , , , json]) => json),
    }
    await this.#parquet.write({ columnData: Object.entries(data).map(([name, values]) => ({ name, data: values })), rowGroupSize: events.length })
    await this.#flush()
  }

  /** Puts it in its place, over an earlier one of the same batch. */
  async finish(): Promise<void> {
    await this.#parquet.finish()
    await this.#flush()
    await this.#handle.sync()
    await this.#handle.close()
    await rename(this.#temporary, path.join(this.#directory, this.#name))
    await syncDirectory(this.#directory)
  }

  /** Does nothing where it is in its place. */
  async discard(): Promise<void> {
    // What went wrong before says why, should this fail as well.
    await this.#handle.close().catch(() => {})
    await rm(this.#temporary, { force: true }).catch(() => {})
  }

  async #flush(): Promise<void> {
    await this.#handle.writeFile(this.#bytes.getBytes())
    this.#bytes.index = 0
  }
}

const column = { repetition_type: 'REQUIRED' } as const
const schema: ConstructorParameters<typeof ParquetWriter>[0]['schema'] = [
  { name: 'events', num_children: 6 },
  { ...column, name: 'id', type: 'BYTE_ARRAY', converted_type: 'UTF8' },
  { ...column, name: 'transaction_id', type: 'INT64' },
  { ...column, name: 'time', type: 'INT64', converted_type: 'TIMESTAMP_MICROS', logical_type: { type: 'TIMESTAMP', isAdjustedToUTC: true, unit: 'MICROS' } },
  { ...column, name: 'key', type: 'BYTE_ARRAY', converted_type: 'UTF8' },
  { ...column, name: 'delta', type: 'INT64' },
  { name: 'data', type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type: 'OPTIONAL' },
]

const dateOf = ([, microseconds]: RawEvent) => new Date(Number(microseconds) / 1000).toISOString().slice(0, 10)

/** What every file system takes. Two names may become the same: the batch's number is still another. Programs pass over files that begin with an underscore. */
const safe = (name: string) => name.replaceAll(/[^a-zA-Z0-9_]+/g, '_').replace(/^_+/, '').slice(0, 100) || 'queue'
const temporaryPrefix = (fileName: string) => `.${fileName}.`

async function removeTemporaryFiles(directory: string, fileName: string): Promise<void> {
  for (const entry of await readdir(directory)) {
    if (entry.startsWith(temporaryPrefix(fileName))) await rm(path.join(directory, entry), { force: true })
  }
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
