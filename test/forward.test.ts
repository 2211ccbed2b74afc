import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import type { EmbeddedServer } from '../src/demo/embedded-server.ts'
import type { ForwardDefinition, Tally } from '../src/index.ts'
import { createTally, defineForward } from '../src/index.ts'
import { createTestDatabase, waitFor, type TestDatabase } from './support/database.ts'
import { blocked, installed, pid, value } from './support/fixtures.ts'
import { startTestServer } from './support/server.ts'
import { beside } from './support/storm.ts'

// Three clusters, since what they are told by differs.
let servers: EmbeddedServer[]
let source: Site
let other: Site
let target: Site

interface Site {
  db: TestDatabase
  tally: Tally
}

async function createSite(server: EmbeddedServer): Promise<Site> {
  const db = await createTestDatabase(server.connectionString)
  return { db, tally: await installed(db) }
}

beforeAll(async () => {
  servers = await Promise.all([startTestServer(), startTestServer(), startTestServer()])
  ;[source, other, target] = (await Promise.all(servers.map(createSite))) as [Site, Site, Site]
})

afterAll(async () => {
  for (const site of [source, other, target]) await site.db.drop()
  await Promise.all(servers.map((server) => server.stop()))
})

let number = 0

interface Stream {
  queue: string
  counter: string
  definition: ForwardDefinition
}

/** A queue, a counter of the target to forward it to, and how. */
async function createStream({ from = source, keyType = 'bigint' }: { from?: Site; keyType?: 'bigint' | 'text' } = {}): Promise<Stream> {
  const queue = `queue_${++number}`
  const counter = `counter_${number}`
  await from.tally.createQueue(queue, { keyType, retainMs: 60_000 })
  await from.tally.queue(queue).register('to target')
  await target.tally.createCounter(counter, { keyType })
  return { queue, counter, definition: { queue, name: 'to target', to: target.tally.counter(counter), pollIntervalMs: 5, leaseMs: 1000 } }
}

const insert = (queue: string, key: string | number, delta = 1, { db } = source) => db.pool.query('select pgtally.insert_event($1::text, $2::text, $3::int8)', [queue, key, delta])
const consumerOf = async ({ queue }: Stream, { tally } = source) => (await tally.status()).consumers.find((consumer) => consumer.queue === queue && consumer.name === 'to target')
async function finished(stream: Stream, site = source): Promise<void> {
  const isFinished = async () => (await consumerOf(stream, site))?.pendingEvents === 0
  await waitFor(isFinished, { what: 'everything to be forwarded' }).catch(async (error: Error) => {
    throw new Error(`${error.message} ${(await consumerOf(stream, site))?.lastError}`)
  })
}
/** Resolves when the consumer's last error is one like that. */
const failed = (stream: Stream, error: RegExp, site = source) =>
  waitFor(async () => {
    const { lastError } = (await consumerOf(stream, site)) ?? {}
    return error.test(lastError ?? '') && (lastError as string)
  }, { what: `the error ${error}` })
/** Forwards everything and ends. */
async function forward(stream: Stream, site = source): Promise<void> {
  await using consumer = site.tally.forward(stream.definition)
  void consumer
  await finished(stream, site)
}

async function counts({ counter }: Stream, at = target): Promise<Record<string, number>> {
  expect(await at.tally.drain()).toMatchObject({ failed: [] })
  const { rows } = await at.db.pool.query<{ key: string; value: string }>(
    `select key::text, value::text from pgtally.count_${await value<number>(at.db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])} where value <> 0`)
  return Object.fromEntries(rows.map(({ key, value: count }) => [key, Number(count)]))
}

/** The call that the error asks the operator for. */
const remedy = (error: string) => /run in the counter's database: (select .*)$/.exec(error)?.[1] ?? ''

/** A batch of the source as the forward would send it, left open: what a process has done that died then. */
async function openBatch({ queue }: Stream, { db } = source): Promise<{ batch: string; keys: string; deltas: string }> {
  await db.pool.query(`select pgtally.claim_batch($1, 'to target', '0 seconds', 1000)`, [queue])
  const { rows } = await db.pool.query(
    `select e.batch::text, e.keys::text, e.deltas::text from pgtally.batch b join pgtally.consumer c using (consumer_id) join pgtally.queue q using (queue_id), pgtally.export_batch(b.batch_id) e
     where q.name = $1 and b.finished_at is null`, [queue])
  return rows[0] as never
}
const receive = ({ counter }: Stream, { batch, keys, deltas }: { batch: string; keys: string; deltas: string }, session: Pick<pg.Client, 'query'> = target.db.pool) =>
  value<boolean>(session, 'select pgtally.receive_batch($1, $2::jsonb, $3::text[], $4::int8[])', [counter, batch, keys, deltas])

describe('a forward', () => {
  test('adds each batch to a counter in another database, summed by key', async () => {
    const stream = await createStream({ keyType: 'text' })
    for (const [key, delta] of [['a', 1], ['a', 2], ['b', -1], ['{"\\,}', 4], ['gone', 1], ['gone', -1]] as const) await insert(stream.queue, key, delta)
    await insert(stream.queue, 'vast', 1)
    await source.db.pool.query(`select pgtally.insert_event($1::text, 'vast', 9007199254740993)`, [stream.queue])
    await using consumer = source.tally.forward(stream.definition)
    void consumer
    await finished(stream)
    const { counter } = stream
    expect(await counts(stream)).toMatchObject({ a: 3, b: -1, '{"\\,}': 4 })
    expect(await target.tally.counter(counter).get('vast', { bigint: true })).toBe(9007199254740994n)
    expect(await value(target.db.pool, `select count(*)::int from pgtally.count_${await value(target.db.pool, 'select counter_id from pgtally.counter where name = $1', [counter])}`)).toBe(4)
    await insert(stream.queue, 'a', 5)
    await finished(stream)
    expect(await counts(stream)).toMatchObject({ a: 8 })
    expect(await value(target.db.pool, 'select source_cluster from pgtally.received where source_queue = $1', [stream.queue])).toBe(await value(source.db.pool, 'select pgtally.system_identifier()'))
  })

  test('of several shards makes one total', async () => {
    const stream = await createStream()
    await other.tally.createQueue(stream.queue)
    await other.tally.queue(stream.queue).register('to target')
    await using one = source.tally.forward(stream.definition)
    await using two = other.tally.forward(stream.definition)
    void [one, two]
    for (let key = 1; key <= 20; key++) {
      await insert(stream.queue, key, 1)
      await insert(stream.queue, key, 10, other)
    }
    await finished(stream)
    await finished(stream, other)
    expect(await counts(stream)).toEqual(Object.fromEntries(Array.from({ length: 20 }, (_, index) => [index + 1, 11])))
  })

  test('brings what was there before, too, as the documentation says, while likes go on', async () => {
    const stream = await createStream()
    await source.db.pool.query(`create table old_likes (post_id bigint); insert into old_likes select 1 from generate_series(1, 5)`)
    await source.tally.createCounter('old_likes', { source: { table: 'old_likes', key: 'post_id' } })
    await using writer = beside(() => source.db.pool.query('insert into old_likes values (1), (2)'))
    const definition = { ...stream.definition, queue: 'old_likes' }
    await waitFor(async () => writer.rounds > 5, { what: 'some likes' })
    const client = await source.db.connect()
    await client.query(`
      begin;
      lock table old_likes in share mode;
      select pgtally.register_consumer('old_likes', 'to target');
      create table seed as select post_id::text as key, count(*) as delta from old_likes group by 1;
      commit`)
    const { rounds } = writer
    await using consumer = source.tally.forward(definition)
    void consumer
    const { rows } = await client.query<{ keys: string; deltas: string }>('select array_agg(key)::text as keys, array_agg(delta)::text as deltas from seed')
    await target.db.pool.query('select pgtally.add_events($1, $2, $3)', [stream.counter, rows[0]?.keys, rows[0]?.deltas])
    await waitFor(async () => writer.rounds > rounds + 5, { what: 'more likes' })
    await writer.stop()
    await finished({ ...stream, queue: 'old_likes' })
    expect(await counts(stream)).toEqual(await value(source.db.pool, 'select json_object_agg(post_id, n) from (select post_id, count(*) as n from old_likes group by 1) s'))
  })

  test('is a consumer by its definition', async () => {
    const stream = await createStream()
    await using consumer = source.tally.consumer(defineForward(stream.definition))
    void consumer
    await insert(stream.queue, 1)
    await finished(stream)
    expect(await counts(stream)).toEqual({ 1: 1 })
  })

  test('needs a counter to forward to, and knows its options', () => {
    const to = target.tally.counter('x')
    expect(defineForward({ queue: 'q', name: 'f', to, maxEvents: undefined, minEvents: 3 })).toMatchObject({ queue: 'q', name: 'f', maxEvents: 200_000, minEvents: 3, mode: 'at-least-once' })
    expect(() => source.tally.forward({ queue: 'q', name: 'f', to: target.db.pool } as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('"f"') }))
    expect(() => source.tally.forward({ queue: 'q', name: 'f', to, maxBatch: 3 } as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('maxBatch') }))
  })

  test('relies on nothing that is not on disk, at either end, whatever the default there', async () => {
    const stream = await createStream()
    const ends = [{ ...source, table: 'pgtally.batch' }, { ...target, table: 'pgtally.received' }]
    const database = ({ db }: Site) => new URL(db.connectionString).pathname.slice(1)
    for (const end of ends) {
      await end.db.pool.query(`
        alter database ${database(end)} set synchronous_commit = off;
        create table modes (mode text);
        create function note_mode() returns trigger language plpgsql as $$ begin insert into public.modes values (current_setting('synchronous_commit')); return null; end $$;
        create trigger note_mode after insert on ${end.table} execute function note_mode()`)
    }
    const [from, to] = ends.map(({ db }) => new pg.Pool({ connectionString: db.connectionString })) as [pg.Pool, pg.Pool]
    {
      await using consumer = createTally({ pool: from }).forward({ ...stream.definition, to: createTally({ pool: to }).counter(stream.counter) })
      void consumer
      await insert(stream.queue, 1)
      await finished(stream)
    }
    const modes = await Promise.all(ends.map(({ db }) => value(db.pool, `select string_agg(distinct mode, ',') from modes`)))
    for (const end of ends) await end.db.pool.query(`alter database ${database(end)} reset synchronous_commit; drop function note_mode() cascade; drop table modes`)
    await Promise.all([from.end(), to.end()])
    expect(modes).toEqual(['on', 'on'])
  })
})

describe('a batch that comes again', () => {
  test('counts once, and a later one does not make it count', async () => {
    const stream = await createStream()
    await insert(stream.queue, 1)
    const batch = await openBatch(stream)
    expect(await receive(stream, batch)).toBe(true)
    expect(await receive(stream, batch)).toBe(false)
    await forward(stream)
    expect(await counts(stream)).toEqual({ 1: 1 })
    await insert(stream.queue, 1)
    await forward(stream)
    await expect(receive(stream, batch)).rejects.toMatchObject({ code: 'TL012' })
    expect(await counts(stream)).toEqual({ 1: 2 })
  })

  test.each([
    ['first', 'commit'],
    ['first', 'rollback'],
    ['later', 'commit'],
    ['later', 'rollback'],
  ])('while the same, the %s one, is under way waits for its %s', async (which, end) => {
    const stream = await createStream()
    if (which === 'later') {
      await insert(stream.queue, 1)
      await forward(stream)
    }
    await insert(stream.queue, 2)
    const batch = await openBatch(stream)
    const [one, two] = await Promise.all([target.db.connect(), target.db.connect()])
    const backend = await pid(two)
    await one.query('begin')
    expect(await receive(stream, batch, one)).toBe(true)
    const second = receive(stream, batch, two)
    await blocked(target.db, backend)
    await one.query(end)
    expect(await second).toBe(end === 'rollback')
    await forward(stream)
    expect(await counts(stream)).toEqual(which === 'later' ? { 1: 1, 2: 1 } : { 2: 1 })
  })
})

describe('source and target that do not fit together any more', () => {
  /** A stream with some batches behind it. */
  async function createOldStream(options: { from?: Site } = {}): Promise<Stream> {
    const stream = await createStream(options)
    for (const key of [1, 2]) {
      await insert(stream.queue, key, 1, options.from)
      await forward(stream, options.from)
    }
    return stream
  }

  /** Starts to forward, which must be refused and change nothing; does then what the error says, after which all that is pending is added. */
  async function acceptAfter(stream: Stream, error: RegExp, site = source): Promise<void> {
    const before = await counts(stream)
    await using consumer = site.tally.forward(stream.definition)
    void consumer
    const message = await failed(stream, error, site)
    expect(message).toContain('docs/forwarding.md')
    expect(await counts(stream)).toEqual(before)
    await target.db.pool.query(remedy(message))
    await finished(stream, site)
    await waitFor(async () => (await consumerOf(stream, site))?.lastError === null, { what: 'no error' })
  }

  test('a source that was set back gives its numbers to other batches: they are refused', async () => {
    await using db = await createTestDatabase(servers[0]?.connectionString)
    const site = { db, tally: await installed(db) }
    const stream = await createOldStream({ from: site })
    const { pathname } = new URL(db.connectionString)
    const name = pathname.slice(1)
    const onServer = (sql: string) => source.db.pool.query(sql)
    const disconnect = (database: string) => onServer(`select pg_terminate_backend(pid) from pg_stat_activity where datname = '${database}'`)
    await disconnect(name)
    await onServer(`create database ${name}_backup template ${name}`)
    await insert(stream.queue, 3, 1, site)
    await forward(stream, site)
    const lost = await value<string>(db.pool, 'select max(batch_id)::text from pgtally.batch')
    await disconnect(name)
    await onServer(`drop database ${name} with (force)`)
    await onServer(`alter database ${name}_backup rename to ${name}`)
    await insert(stream.queue, 4, 1, site)
    await acceptAfter(stream, /the source was set back/, site)
    expect(await value<string>(db.pool, 'select max(batch_id)::text from pgtally.batch')).toBe(lost)
    expect(await counts(stream)).toEqual({ 1: 1, 2: 1, 3: 1, 4: 1 })
  })

  test('a source that was set back to just where the target is goes on', async () => {
    const stream = await createOldStream()
    // It had given a batch that was neither received nor finished, which the backup does not have.
    await insert(stream.queue, 3)
    const { batch } = await openBatch(stream)
    await source.db.pool.query('delete from pgtally.batch where batch_id = $1', [JSON.parse(batch).number])
    await forward(stream)
    expect(await counts(stream)).toEqual({ 1: 1, 2: 1, 3: 1 })
  })

  /** A copy of a source's database, in the same cluster. */
  async function copied({ db }: Site): Promise<Site> {
    const url = new URL(db.connectionString)
    const name = url.pathname.slice(1)
    await source.db.pool.query(`select pg_terminate_backend(pid) from pg_stat_activity where datname = '${name}'`)
    await source.db.pool.query(`create database ${name}_copy template ${name}`)
    url.pathname = `${name}_copy`
    const pool = new pg.Pool({ connectionString: url.href })
    pool.on('error', () => {})
    const drop = async () => {
      await pool.end()
      await source.db.pool.query(`drop database ${name}_copy with (force)`)
    }
    return { db: { connectionString: url.href, pool, connect: db.connect, drop, [Symbol.asyncDispose]: drop }, tally: createTally({ pool }) }
  }

  test('a copy of the source, made before the first batch, is refused', async () => {
    await using db = await createTestDatabase(servers[0]?.connectionString)
    const site = { db, tally: await installed(db) }
    const stream = await createStream({ from: site })
    await insert(stream.queue, 3, 1, site)
    const copy = await copied(site)
    await using copyDb = copy.db
    void copyDb
    await forward(stream, site)
    await using consumer = copy.tally.forward(stream.definition)
    expect(await failed(stream, /this one is a copy of it/, copy)).toContain(new URL(db.connectionString).pathname.slice(1))
    expect(await counts(stream)).toEqual({ 3: 1 })
    await consumer.stop()
  })

  test('a copy of the source is refused, and when it has taken the place of the original, that is', async () => {
    await using db = await createTestDatabase(servers[0]?.connectionString)
    const site = { db, tally: await installed(db) }
    const stream = await createOldStream({ from: site })
    await insert(stream.queue, 3, 1, site)
    const copy = await copied(site)
    await using copyDb = copy.db
    void copyDb
    await using consumer = copy.tally.forward(stream.definition)
    const message = await failed(stream, /this one is a copy of it/, copy)
    expect(await counts(stream)).toEqual({ 1: 1, 2: 1 })
    await target.db.pool.query(remedy(message))
    await finished(stream, copy)
    await using original = site.tally.forward(stream.definition)
    await failed(stream, /nothing was received from there before/, site)
    expect(await counts(stream)).toEqual({ 1: 1, 2: 1, 3: 1 })
    await Promise.all([consumer.stop(), original.stop()])
  })

  test('a consumer that was registered again', async () => {
    const stream = await createOldStream()
    await source.tally.queue(stream.queue).unregister('to target')
    await insert(stream.queue, 3)
    await source.tally.queue(stream.queue).register('to target')
    await insert(stream.queue, 4)
    await acceptAfter(stream, /registered again/)
    expect(await counts(stream)).toEqual({ 1: 1, 2: 1, 4: 1 })
  })

  test.each(['seek', 'skip'])('a consumer that was moved by %s', async (way) => {
    const stream = await createOldStream()
    await insert(stream.queue, 3)
    const queue = source.tally.queue(stream.queue)
    if (way === 'skip') await queue.skip('to target')
    else await queue.seek('to target', new Date(Date.now() - 60_000))
    await insert(stream.queue, 4)
    await acceptAfter(stream, /seek, skip/)
    expect(await counts(stream)).toEqual(way === 'skip' ? { 1: 1, 2: 1, 4: 1 } : { 1: 2, 2: 2, 3: 1, 4: 1 })
  })

  test('a target that was set back lacks what the source has finished', async () => {
    const stream = await createOldStream()
    const backup = await value<string>(target.db.pool, 'select to_json(r)::text from pgtally.received r where source_queue = $1', [stream.queue])
    await insert(stream.queue, 3)
    await forward(stream)
    await target.db.pool.query('delete from pgtally.received where source_queue = $1', [stream.queue])
    await target.db.pool.query('insert into pgtally.received select * from json_populate_record(null::pgtally.received, $1)', [backup])
    await insert(stream.queue, 4)
    await acceptAfter(stream, /this database was set back \(restored from an older backup\), and lacks/)
    expect(await counts(stream)).toEqual({ 1: 1, 2: 1, 3: 1, 4: 1 })
  })

  test('a counter that was made again', async () => {
    const stream = await createOldStream()
    await target.tally.dropCounter(stream.counter)
    await target.tally.createCounter(stream.counter, {})
    await insert(stream.queue, 3)
    await acceptAfter(stream, /nothing was received from there before, and it is not the first batch/)
    expect(await counts(stream)).toEqual({ 3: 1 })
  })

  test('are told apart from two forwards of one queue', async () => {
    const stream = await createOldStream()
    await source.tally.queue(stream.queue).register('second')
    const second = `${stream.counter}_second`
    await target.tally.createCounter(second, {})
    await insert(stream.queue, 3)
    await using one = source.tally.forward(stream.definition)
    void one
    await using two = source.tally.forward({ ...stream.definition, name: 'second', to: target.tally.counter(second) })
    void two
    await waitFor(async () => (await source.tally.status()).consumers.every(({ queue, pendingEvents }) => queue !== stream.queue || pendingEvents === 0), { what: 'both' })
    expect(await counts(stream)).toEqual({ 1: 1, 2: 1, 3: 1 })
    expect(await counts({ ...stream, counter: second })).toEqual({ 3: 1 })
  })
})

describe('a target that does not do', () => {
  const nowhere = new pg.Pool({ connectionString: 'postgres://nobody@127.0.0.1:1/nothing' })
  afterAll(() => nowhere.end())

  test.each<[string, RegExp, (stream: Stream) => Promise<ForwardDefinition['to']>]>([
    ['is down', /server cannot be reached \(.*ECONNREFUSED.*\); this goes on/, async ({ counter }) => createTally({ pool: nowhere }).counter(counter)],
    ['is not installed', /pgtally is not installed here.*pgtally install/, async ({ counter }) => createTally({ pool: target.db.pool, schema: 'nothing' }).counter(counter)],
    ['has no such counter', /There is no counter "missing".*create_counter/, async () => target.tally.counter('missing')],
    ['has a counter with a source', /counts the rows of .*likes_1: .*without a source/, async () => {
      await target.db.pool.query('create table if not exists likes_1 (post_id bigint)')
      await target.tally.createCounter('with_source', { source: { table: 'likes_1', key: 'post_id' } })
      return target.tally.counter('with_source')
    }],
    ['has keys of a narrower type', /out of range for type smallint.*wider keyType/, async () => {
      await target.tally.createCounter('narrow', { keyType: 'smallint' })
      return target.tally.counter('narrow')
    }],
    ['has keys of another type', /invalid input syntax for type uuid.*keyType/, async () => {
      await target.tally.createCounter('uuids', { keyType: 'uuid' })
      return target.tally.counter('uuids')
    }],
    ['is the queue itself', /forwarded to itself/, async ({ queue }) => {
      await source.tally.createCounter(`${queue}_itself`, { queue })
      return source.tally.counter(`${queue}_itself`)
    }],
  ])('%s: the reason is in the status, nothing is lost, other consumers go on, and so does this one when it does', async (_, error, badTarget) => {
    const stream = await createStream()
    const others: string[] = []
    await insert(stream.queue, 100_000)
    const consumer = source.tally.forward({ ...stream.definition, to: await badTarget(stream) })
    await using neighbour = source.tally.consumer({ queue: stream.queue, name: 'other', pollIntervalMs: 5, handler: async (batch) => { for await (const { key } of batch) others.push(key) } })
    void neighbour
    await failed(stream, error)
    await waitFor(async () => (await source.tally.status()).consumers.some(({ queue, name }) => queue === stream.queue && name === 'other'), { what: 'the other to be registered' })
    await insert(stream.queue, 7)
    await waitFor(async () => others.includes('7'), { what: 'the other consumer' })
    await consumer.stop()
    await forward(stream)
    expect(await counts(stream)).toEqual({ 7: 1, 100000: 1 })
    // Nor is anything left of it, although it was another process that had failed.
    expect(await consumerOf(stream)).toMatchObject({ deadLetters: 0, retryingEvents: 0, lastError: null })
  })

  test.each<[string, RegExp, (stream: Stream) => string, (stream: Stream) => string]>([
    ['is read-only', /read-only.*connect to the primary/, () => `alter role forwarder set default_transaction_read_only = on`, () => `alter role forwarder reset default_transaction_read_only`],
    ['is of another version', /another version of pgtally.*pgtally install/, () => 'alter function pgtally.receive_batch rename to receive_batch_before', () => 'alter function pgtally.receive_batch_before rename to receive_batch'],
    ['gives no right', /USAGE on the schema and EXECUTE on receive_batch/, () => 'revoke execute on function pgtally.receive_batch from forwarder', () => 'grant execute on function pgtally.receive_batch to forwarder'],
  ])('%s: it goes on by itself when that is mended', async (_, error, breakIt, mendIt) => {
    const stream = await createStream()
    await target.db.pool.query(`create role forwarder login password 'test'; grant usage on schema pgtally to forwarder; grant execute on function pgtally.receive_batch to forwarder`)
    const url = new URL(target.db.connectionString)
    url.username = 'forwarder'
    url.password = 'test'
    // Each time a new connection, which has the role's settings as they are then.
    const pool = new pg.Pool({ connectionString: url.href, maxUses: 1 })
    pool.on('error', () => {})
    try {
      await target.db.pool.query(breakIt(stream))
      await insert(stream.queue, 1)
      await using consumer = source.tally.forward({ ...stream.definition, to: createTally({ pool }).counter(stream.counter) })
      void consumer
      await failed(stream, error)
      await target.db.pool.query(mendIt(stream))
      await finished(stream)
      await waitFor(async () => (await consumerOf(stream))?.lastError === null, { what: 'no error' })
      expect(await counts(stream)).toEqual({ 1: 1 })
    } finally {
      await pool.end()
      await target.db.pool.query(`drop owned by forwarder; drop role forwarder`)
    }
  })
})
