import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { expect, test } from 'vitest'

import { Random } from './chaos/random.ts'
import { createTestDatabase, waitFor } from './support/database.ts'
import { installed, value } from './support/fixtures.ts'
import { beside, seed, startCommand } from './support/storm.ts'

/** `PGTALLY_TEST_KILLS=200 npm exec -- vitest run test/consumers-killed.test.ts` for a long run. */
const kills = Number(process.env['PGTALLY_TEST_KILLS'] ?? 10)
const ledger = fileURLToPath(new URL('support/ledger.ts', import.meta.url))

test(`each event is handled exactly once by a transactional consumer whose processes are killed ${kills} times (seed ${seed})`, { timeout: 60_000 + kills * 2000 }, async () => {
  await using db = await createTestDatabase()
  const tally = await installed(db)
  await db.pool.query(`
    create table likes (post_id bigint, user_id bigint);
    create table ledger (id text, key text, delta bigint);
    create function likes_given(out post_id bigint, out n bigint) returns setof record language sql as 'select post_id, count(*) from likes group by 1'`)
  await tally.createCounter('post_likes', { source: { table: 'likes', key: 'post_id', data: ['user_id'] } })
  await tally.queue('post_likes').register('ledger')
  const random = new Random(seed)
  await using writing = beside(async () => {
    await db.pool.query(random.next() < 0.3 ? 'delete from likes where ctid = (select ctid from likes limit 1)' : 'insert into likes select 1 + random() * 9, n from generate_series(1, 5) n')
    await sleep(30)
  })
  const start = () => startCommand(db.connectionString, ['worker', '--module', ledger])
  const handled = () => value<number>(db.pool, 'select count(*)::int from ledger')
  await using processes = new AsyncDisposableStack()
  const running = [start(), start()]
  for (let kill = 0; kill < kills; kill++) {
    const victim = running.shift()
    const before = await handled()
    await victim?.said('consumer started')
    if (random.next() < 0.5) await waitFor(async () => (await handled()) > before, { what: 'an effect' })
    await sleep(random.upTo(40))
    await victim?.kill()
    running.push(start())
  }
  for (const command of running) processes.use(command)
  await writing.stop()
  await waitFor(async () => (await tally.status()).consumers[0]?.pendingEvents === 0, { what: 'the rest to be handled' })
  expect(await value(db.pool, 'select count(*)::int - count(distinct id)::int from ledger')).toBe(0)
  const wrong = await db.pool.query(`
    select * from likes_given() g full join (select key::bigint, sum(delta) as n from ledger group by 1) l on l.key = g.post_id where coalesce(g.n, 0) <> coalesce(l.n, 0)`)
  expect(wrong.rows).toEqual([])
  // Some were killed in the middle of a batch, which was then given to another.
  expect(await value<number>(db.pool, `select count(*)::int from pgtally.batch where claim > 1`)).toBeGreaterThan(0)
})
