import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import { DuckDBInstance } from '@duckdb/node-api'
import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'

import { archive } from '../src/archive.ts'
import type { ArchiveOptions } from '../src/archive.ts'
import type { Tally } from '../src/index.ts'
import { createTally } from '../src/index.ts'
import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { installed, value } from './support/fixtures.ts'
import { startScript } from './support/scripts.ts'
import { seed } from './support/storm.ts'

let db: TestDatabase
let tally: Tally
let root: string

beforeAll(async () => {
  db = await createTestDatabase()
  tally = await installed(db)
  root = await mkdtemp(path.join(tmpdir(), 'pgtally-archive-'))
  return async () => {
    await db.drop()
    await rm(root, { recursive: true, force: true })
  }
})

let archives = 0

/** A queue with a registered consumer `archive`, and an empty directory. */
async function createArchive(queue = `events_${archives + 1}`): Promise<{ queue: string; directory: string }> {
  const directory = path.join(root, String(++archives))
  await mkdir(directory)
  await tally.createQueue(queue, { keyType: 'text' })
  await tally.queue(queue).register('archive')
  return { queue, directory }
}

const fast = { name: 'archive', minEvents: 1, maxWaitMs: 0, pollIntervalMs: 5 } as const

const consumerOf = async (queue: string) => (await tally.status()).consumers.find((consumer) => consumer.queue === queue)
// Where processes have to start first, that takes its time on a busy machine.
const finished = (queue: string, timeoutMs = 60_000) => waitFor(async () => (await consumerOf(queue))?.pendingEvents === 0, { what: 'an archive that has finished everything', timeoutMs })

/** Archives what is there, and ends. */
async function archiveAll(options: Pick<ArchiveOptions, 'queue' | 'directory'> & Partial<ArchiveOptions>): Promise<void> {
  await using consumer = tally.consumer(archive({ ...fast, ...options }))
  void consumer
  await finished(options.queue)
}

/** All files below the directory, temporary ones included. */
const filesIn = async (directory: string) => (await readdir(directory, { recursive: true })).filter((name) => name.includes('/')).toSorted()

async function duckdb(sql: string): Promise<Record<string, unknown>[]> {
  const connection = await (await DuckDBInstance.create()).connect()
  try {
    await connection.run(`set timezone = 'UTC'`)
    return (await connection.runAndReadAll(sql)).getRowObjectsJS() as Record<string, unknown>[]
  } finally {
    connection.closeSync()
  }
}

const columns = ['id', 'transaction_id', 'micros', 'date', 'key', 'delta', 'data']

const archived = (directory: string) =>
  duckdb(`select id, transaction_id::varchar transaction_id, epoch_us(time)::varchar micros, date::varchar date, key, delta::varchar delta, data
    from read_parquet('${directory}/*/*.parquet', hive_partitioning = true)`)

/** What the queue holds, in the words of the archive. Nobody empties its slots here. */
async function queued(queue: string): Promise<Record<string, unknown>[]> {
  const id = await value<number>(db.pool, 'select queue_id from pgtally.queue where name = $1', [queue])
  const { rows } = await db.pool.query<Record<string, unknown>>(`
    select ev_txid || '.' || ev_slot || translate(ctid::text, '(,)', '..') as id, ev_txid::text as transaction_id, (extract(epoch from ev_time) * 1000000)::int8::text as micros,
      to_char(ev_time at time zone 'UTC', 'YYYY-MM-DD') as date, ev_key as key, ev_delta::text as delta, ev_data::text as data
    from pgtally.event_${id}`)
  return rows
}

async function expectArchived(queue: string, directory: string): Promise<void> {
  const byId = (rows: Record<string, unknown>[]) => rows.toSorted((one, other) => (String(one['id']) < String(other['id']) ? -1 : 1))
  const [inFiles, inQueue] = [byId(await archived(directory)), byId(await queued(queue))]
  expect(Object.keys(inFiles[0] ?? {})).toEqual(columns)
  expect(inFiles.length).toBe(inQueue.length)
  expect(inFiles).toEqual(inQueue)
}

const insertMany = (queue: string, count: number) => db.pool.query(`select pgtally.insert_event($1::text, 'key ' || n, n) from generate_series(1, $2::int) n`, [queue, count])

describe('an archive', () => {
  test('holds what the queue held, to the last digit', async () => {
    const { queue, directory } = await createArchive()
    const keys = ['a', '', 'naïve', '日本語', '👍🏽', "' \" \\ \n \t", 'é'.repeat(1000)]
    const datas = [null, 'null', '"text"', '{"user_id": 7, "n": 12345678901234567890.123456789, "t": "\\"👍\\" \\n"}', '[]', '0.10', '{}']
    for (const [index, key] of keys.entries()) await db.pool.query('select pgtally.insert_event($1::text, $2::text, $3::int8, $4::jsonb)', [queue, key, index, datas[index]])
    for (const delta of ['9223372036854775807', '-9223372036854775808', '9007199254740993', '0']) await db.pool.query(`select pgtally.insert_event($1::text, 'large', $2::int8)`, [queue, delta])
    await archiveAll({ queue, directory })
    await expectArchived(queue, directory)
    expect(new Set((await archived(directory)).map(({ data }) => data)).size).toBe(datas.length)
    expect(await consumerOf(queue)).toMatchObject({ deadLetters: 0, lastError: null })
  })

  test('has columns of these types, and says where its events are from', async () => {
    const { queue, directory } = await createArchive()
    await insertMany(queue, 1)
    await archiveAll({ queue, directory })
    const described = await duckdb(`describe select * from read_parquet('${directory}/*/*.parquet', hive_partitioning = false)`)
    expect(described.map(({ column_name, column_type }) => [column_name, column_type])).toEqual([
      ['id', 'VARCHAR'],
      ['transaction_id', 'BIGINT'],
      ['time', 'TIMESTAMP WITH TIME ZONE'],
      ['key', 'VARCHAR'],
      ['delta', 'BIGINT'],
      ['data', 'VARCHAR'],
    ])
    const [metadata] = await duckdb(`select decode(value) as v from parquet_kv_metadata('${directory}/*/*.parquet') where decode(key) = 'pgtally'`)
    expect(JSON.parse(metadata?.['v'] as string)).toMatchObject({
      queue,
      consumer: 'archive',
      batch: expect.stringMatching(/^\d+$/),
      token: await value(db.pool, 'select token from pgtally.batch join pgtally.consumer using (consumer_id) join pgtally.queue using (queue_id) where queue.name = $1 and claim > 0', [queue]),
    })
  })

  test('of a large batch is one file with a row group for each page, and a batch after the other a file each', async () => {
    const { queue, directory } = await createArchive()
    await insertMany(queue, 12_000)
    await archiveAll({ queue, directory })
    await expectArchived(queue, directory)
    const [groups] = await duckdb(`select count(distinct row_group_id)::int n, max(row_group_num_rows)::int most from parquet_metadata('${directory}/*/*.parquet')`)
    expect(groups).toEqual({ n: 3, most: 5000 })
    await insertMany(queue, 1)
    await archiveAll({ queue, directory })
    expect(await filesIn(directory)).toHaveLength(2)
    await expectArchived(queue, directory)
  })

  test('of a batch that spans midnight (UTC) is one file for each date', async () => {
    const { queue, directory } = await createArchive()
    const id = await value<number>(db.pool, 'select queue_id from pgtally.queue where name = $1', [queue])
    const times = ['2026-11-20 23:59:59.999999+00', '2026-11-21 00:00:00+00', '2026-11-21 23:30:00-05', '2026-11-21 12:00:00.000001+00']
    for (const [index, time] of times.entries()) {
      await db.pool.query('select pgtally.insert_event($1::text, $2::text)', [queue, String(index)])
      await db.pool.query(`update pgtally.event_${id} set ev_time = $1 where ev_key = $2`, [time, String(index)])
    }
    await archiveAll({ queue, directory })
    await expectArchived(queue, directory)
    const [one, two, three, ...rest] = await filesIn(directory)
    expect([one, two, three].map((name) => name?.slice(0, 16))).toEqual(['date=2026-11-20/', 'date=2026-11-21/', 'date=2026-11-22/'])
    expect(new Set([one, two, three].map((name) => name?.slice(16))).size).toBe(1)
    expect(rest).toEqual([])
    expect((await archived(directory)).map(({ key, date }) => `${key as string} ${date as string}`).toSorted()).toEqual(['0 2026-11-20', '1 2026-11-21', '2 2026-11-22', '3 2026-11-21'])
  })

  test.each([
    ['../up/and away', /^up_and_away-/],
    ['_hidden', /^hidden-/],
    ['.', /^queue-/],
    ['ключ', /^queue-/],
    [`long ${'x'.repeat(150)}`, /^long_x{95}-/],
  ])('of the queue "%s" has names that every file system takes', async (queue, name) => {
    const { directory } = await createArchive(queue)
    await insertMany(queue, 2)
    await archiveAll({ queue, directory })
    const [file, ...rest] = await filesIn(directory)
    expect(file).toMatch(/^date=\d{4}-\d\d-\d\d\/[a-zA-Z0-9_]+-\d+-[0-9a-f]{32}\.parquet$/)
    expect(path.basename(file ?? '')).toMatch(name)
    expect(rest).toEqual([])
    await expectArchived(queue, directory)
  })

  test('needs a directory', () => {
    for (const directory of [undefined, '']) {
      expect(() => archive({ queue: 'q', name: 'c', directory } as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('directory') }))
    }
    expect(() => tally.consumer(archive({ queue: 'q', name: 'c', directory: '/nowhere', concurrency: 2 }))).toThrow(/ordered: false/)
  })

  test('waits for events that are worth a file, and makes no files of nothing', async () => {
    const { queue, directory } = await createArchive()
    await using consumer = tally.consumer(archive({ queue, name: 'archive', directory, minEvents: 10, pollIntervalMs: 5 }))
    await insertMany(queue, 9)
    await waitFor(async () => (await consumerOf(queue))?.pendingEvents === 9, { what: 'nine events' })
    await insertMany(queue, 1)
    await finished(queue)
    await consumer.stop()
    expect(await filesIn(directory)).toHaveLength(1)
    await expectArchived(queue, directory)
  })
})

describe('what a file is named by', () => {
  test('is not the same in another database or installation', async () => {
    const { queue, directory } = await createArchive()
    const names = new Set<string>()
    const archiveOnce = async (database: TestDatabase, schema = 'pgtally') => {
      const own = createTally({ pool: database.pool, schema })
      await own.install()
      await own.createQueue(queue)
      await own.queue(queue).register('archive')
      await own.queue(queue).insert(database.pool, { key: 1 })
      // So that all have the same number.
      await database.pool.query(`alter table ${schema}.batch alter column batch_id restart with 1000000`)
      await using consumer = own.consumer(archive({ ...fast, queue, directory }))
      void consumer
      const done = async () => (await own.status()).consumers.every(({ pendingEvents }) => pendingEvents === 0)
      await waitFor(done, { what: 'an archive that has finished everything' })
      for (const file of await filesIn(directory)) names.add(path.basename(file))
    }
    await using one = await createTestDatabase()
    await using two = await createTestDatabase()
    await archiveOnce(one)
    await archiveOnce(two)
    await archiveOnce(one, 'other')
    await createTally({ pool: two.pool }).uninstall()
    await archiveOnce(two)
    expect([...names].filter((name) => name.includes('-1000000-'))).toHaveLength(4)
    expect(names.size).toBe(4)
  })

  test('is not the same in a copy of the database', async () => {
    const { queue, directory } = await createArchive()
    await using original = await createTestDatabase()
    const copyUrl = `${original.connectionString}_copy`
    const inPool = async (connectionString: string, work: (own: Tally, pool: pg.Pool) => Promise<unknown>) => {
      const pool = new pg.Pool({ connectionString })
      pool.on('error', () => {})
      await work(createTally({ pool }), pool).finally(() => pool.end())
    }
    const archiveIn = (connectionString: string) =>
      inPool(connectionString, async (own) => {
        await using consumer = own.consumer(archive({ ...fast, queue, directory }))
        void consumer
        await waitFor(async () => (await own.status()).consumers[0]?.pendingEvents === 0, { what: 'an archive that has finished everything' })
      })
    await inPool(original.connectionString, async (own, pool) => {
      await own.install()
      await own.createQueue(queue)
      await own.queue(queue).register('archive')
      await own.queue(queue).insert(pool, { key: 1 })
    })
    const name = new URL(copyUrl).pathname.slice(1)
    // The server may take a moment to see that nobody uses it any more.
    await waitFor(() => db.pool.query(`create database ${name} template ${name.replace('_copy', '')}`).then(() => true, (error: Error) => { if (/being accessed/.test(error.message)) return false; throw error }), { what: 'a copy' })
    try {
      await archiveIn(original.connectionString)
      await archiveIn(copyUrl)
    } finally {
      await db.pool.query(`drop database ${name} with (force)`)
    }
    const [one, two, ...rest] = (await filesIn(directory)).map((file) => path.basename(file).split('-'))
    expect(rest).toEqual([])
    expect(one?.[1]).toBe(two?.[1])
    expect(one?.[2]).not.toBe(two?.[2])
  })
})

describe('a batch that is given again', () => {
  const start = (queue: string, directory: string, stayAfter = '') => startScript(new URL('support/archive-process.ts', import.meta.url), db.connectionString, queue, directory, stayAfter)

  test.each(['page', 'rename'])('as its process was killed after a %s, leaves each event in one file', { timeout: 120_000 }, async (stayAfter) => {
    const { queue, directory } = await createArchive()
    await insertMany(queue, 12_000)
    await using killed = start(queue, directory, stayAfter)
    await killed.said(stayAfter)
    await killed.kill()
    const left = await filesIn(directory)
    expect(left).toHaveLength(1)
    expect(left[0]).toMatch(stayAfter === 'page' ? /\/\.events_\d+-.*\.parquet\.[-0-9a-f]+$/ : /\/events_\d+-.*\.parquet$/)
    await using other = start(queue, directory)
    await finished(queue, 60_000)
    await other.kill()
    expect(await filesIn(directory)).toEqual([expect.stringMatching(/\/events_\d+-.*\.parquet$/)])
    await expectArchived(queue, directory)
  })

  test(`however often its process is killed, leaves each event in one file (seed ${seed})`, { timeout: 120_000 }, async () => {
    const { queue, directory } = await createArchive()
    const random = new Random(seed)
    for (let round = 0; round < 6; round++) {
      await insertMany(queue, 10_000)
      await using process = start(queue, directory)
      await process.said('started')
      await sleep(random.upTo(300))
      await process.kill()
    }
    await using last = start(queue, directory)
    await finished(queue, 60_000)
    await last.kill()
    await expectArchived(queue, directory)
    expect((await filesIn(directory)).filter((file) => path.basename(file).startsWith('.'))).toEqual([])
  })
})

describe('a directory that cannot be written', () => {
  test.each([
    ['is not there', async () => {}, async () => {}],
    ['is a file', async (directory: string) => writeFile(directory, ''), async (directory: string) => rm(directory)],
  ])('as it %s: is said, loses nothing, and is mended', async (_, make, mend) => {
    const { queue, directory } = await createArchive()
    await rm(directory, { recursive: true })
    await make(directory)
    await insertMany(queue, 100)
    await using consumer = tally.consumer(archive({ ...fast, queue, directory, leaseMs: 200 }))
    void consumer
    const { lastError } = await waitFor(async () => { const status = await consumerOf(queue); return status?.lastError ? status : undefined }, { what: 'the error' })
    expect(lastError).toContain(`The archive cannot write to ${directory} (`)
    expect(lastError).toContain('wait in the queue')
    expect(await consumerOf(queue)).toMatchObject({ pendingEvents: 100, deadLetters: 0 })
    await mend(directory)
    await mkdir(directory)
    await finished(queue)
    await waitFor(async () => (await consumerOf(queue))?.lastError === null, { what: 'no error' })
    await expectArchived(queue, directory)
    expect(await filesIn(directory)).toHaveLength(1)
  })

  test('in the middle of a batch leaves nothing half done', async () => {
    const { queue, directory } = await createArchive()
    const id = await value<number>(db.pool, 'select queue_id from pgtally.queue where name = $1', [queue])
    await insertMany(queue, 6000)
    // The second page has a date of its own, whose directory cannot be made.
    await db.pool.query(`update pgtally.event_${id} set ev_time = '2026-01-01 12:00+00'; update pgtally.event_${id} set ev_time = '2026-01-02 12:00+00' where ev_delta > 5000`)
    await writeFile(path.join(directory, 'date=2026-01-02'), '')
    await using consumer = tally.consumer(archive({ ...fast, queue, directory }))
    void consumer
    await waitFor(async () => /ENOTDIR/.test((await consumerOf(queue))?.lastError ?? ''), { what: 'the error' })
    await waitFor(async () => (await filesIn(directory)).length === 0, { what: 'no half file between two attempts' })
    await rm(path.join(directory, 'date=2026-01-02'))
    await finished(queue)
    await expectArchived(queue, directory)
    expect(await filesIn(directory)).toHaveLength(2)
  })
})
