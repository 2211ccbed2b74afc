// Makes docs/dashboard.png: the dashboard of an invented site, in the browser that the tests use.

import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import pg from 'pg'

import { startEmbeddedServer } from '../src/demo/embedded-server.ts'
import { serveHttp } from '../src/http.ts'
import { createTally } from '../src/index.ts'
import { howToGetOne, launchBrowser } from './support/browser.ts'

const things = ['post', 'comment', 'photo', 'story', 'album']
const watchedMs = 45_000

const browser = await launchBrowser()
if (browser === undefined) throw new Error(`This ${howToGetOne}.`)
await using server = await startEmbeddedServer({ settings: { fsync: 'off' } })
const pool = new pg.Pool({ connectionString: server.connectionString, max: 30 })
try {
  const tally = createTally({ pool })
  await tally.install()
  for (const thing of things) {
    await pool.query(`
      create table ${thing}s (id bigint primary key, like_count bigint not null default 0);
      insert into ${thing}s (id) select generate_series(1, 500);
      create table ${thing}_likes (${thing}_id bigint, user_id bigint);
      create index on ${thing}_likes (${thing}_id)`)
    const data = thing === 'post' ? { data: ['user_id'] } : {}
    await tally.createCounter(`${thing}_likes`, { source: { table: `${thing}_likes`, key: `${thing}_id`, ...data }, target: { table: `${thing}s`, key: 'id', column: 'like_count' } })
  }
  await tally.createCounter('page_views', { keyType: 'text' })
  const queue = tally.queue('post_likes')
  for (const name of ['notifier', 'search indexer']) await queue.register(name)
  await queue.pause('search indexer')
  await pool.query('update storys set like_count = like_count + 1 where id = 77')
  for (const thing of ['post', 'photo', 'story']) await tally.counter(`${thing}_likes`).audit()
  await tally.counter('comment_likes').audit({ sample: 100 })
  await pool.query('alter table albums rename like_count to likes')

  await using worker = tally.worker()
  await using notifier = tally.consumer({ queue: 'post_likes', name: 'notifier', handler: async () => {} })
  await using http = await serveHttp(tally, [worker, notifier], { port: 0 })
  const page = await browser.newPage({ viewport: { width: 1160, height: 930 }, colorScheme: 'light' })
  await page.goto(http.url)
  const endsAt = performance.now() + watchedMs
  while (performance.now() < endsAt) {
    const wave = 1.3 + Math.sin(performance.now() / 3000)
    for (const [index, thing] of things.entries()) {
      await pool.query(`insert into ${thing}_likes select ceil(500 * power(random(), 4)), n from generate_series(1, $1) n`, [Math.ceil((30 * wave) / (index + 1))])
    }
    for (const path of ['/home', '/home', '/about']) await tally.counter('page_views').add(pool, path)
    await sleep(50)
  }
  await page.screenshot({ path: fileURLToPath(new URL('../docs/dashboard.png', import.meta.url)) })
} finally {
  await browser.close()
  await pool.end()
}
