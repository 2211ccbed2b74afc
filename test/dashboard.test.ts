import type { Browser, Locator, Page } from 'playwright-core'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'

import { dashboardRoutes } from '../src/http/dashboard.ts'
import { HttpServer } from '../src/http/server.ts'
import { serveHttp } from '../src/http.ts'
import type { Tally } from '../src/index.ts'
import { silent } from '../src/logger.ts'
import type { Status } from '../src/status.ts'
import { howToGetOne, keepScreenshot, launchBrowser, openPage } from './support/browser.ts'
import { createTestDatabase, waitFor } from './support/database.ts'
import type { TestDatabase } from './support/database.ts'
import { createBlog, installed, like } from './support/fixtures.ts'
import { dedicatedServer } from './support/server.ts'

// A browser on a machine that is busy.
vi.setConfig({ testTimeout: 120_000 })

let maybeBrowser: Browser | undefined
let browser: Browser
let db: TestDatabase
let tally: Tally

beforeAll(async () => {
  maybeBrowser = await launchBrowser()
  db = await createTestDatabase()
  tally = await installed(db)
})
beforeEach((context) => {
  if (maybeBrowser === undefined) context.skip(howToGetOne)
  else browser = maybeBrowser
})
afterEach(async () => {
  for (const context of maybeBrowser?.contexts() ?? []) await context.close()
})
afterAll(async () => {
  await maybeBrowser?.close()
  await db.drop()
})

const smuggled = '<img src=x onerror="document.title=1"><script>document.title=1</script>'

/** Waits until the element is to be seen and its text fits. */
async function reads(locator: Locator, expected: RegExp | string): Promise<void> {
  const fits = (text: string) => (typeof expected === 'string' ? text === expected : expected.test(text))
  let last = ''
  try {
    await locator.waitFor({ timeout: 20_000 })
    await waitFor(async () => fits((last = (await locator.innerText({ timeout: 20_000 })).replaceAll(/\s+/g, ' ').trim())), { what: String(expected) })
  } catch (error) {
    throw new Error(`It reads "${last}", and not ${expected}.`, { cause: error })
  }
}

const table = (page: Page, name: string) => page.getByRole('table', { name, exact: true })
/** The group of rows that a counter has. */
const counterRows = (page: Page, name: string) => table(page, 'Counters').getByRole('rowgroup').filter({ has: page.getByRole('button', { name, exact: true }) })
const cells = async (row: Locator) => (await row.getByRole('cell').allInnerTexts()).map((text) => text.replaceAll(/\s+/g, ' ').trim())
const overflow = (page: Page) => page.evaluate<number>('document.documentElement.scrollWidth - window.innerWidth')

test('a database without counters: the page says what to do, and shows the first one by itself', async () => {
  await using own = await createTestDatabase()
  const ownTally = await installed(own)
  await using http = await serveHttp(ownTally, [], { port: 0 })
  const { page, complaints } = await openPage(browser, http.url)
  await page.getByRole('heading', { name: 'There are no counters yet' }).waitFor()
  await reads(page.locator('#empty code').last(), /^pgtally counter create post_likes/)
  expect(await page.locator('#content').isVisible()).toBe(false)
  await ownTally.createCounter('views', { keyType: 'text' })
  await counterRows(page, 'views').waitFor()
  expect(await page.locator('#empty').isVisible()).toBe(false)
  await reads(page.locator('#hot-note'), 'No worker runs in this process.')
  expect(complaints).toEqual([])
})

test('shows what the database holds, whatever the names, and what changes', async () => {
  const blog = await createBlog(db, tally, { source: { data: ['kind'] } })
  const broken = await createBlog(db, tally)
  const drifting = await createBlog(db, tally)
  await tally.createCounter(smuggled, { keyType: 'text' })
  const queue = tally.queue(blog.counter)
  for (const name of ['mailer', smuggled]) await queue.register(name)
  await queue.pause('mailer')
  await db.pool.query(`alter table ${broken.posts} rename like_count to likes`)
  await db.pool.query(`update ${drifting.posts} set like_count = 5 where id = 2`)
  expect(await tally.counter(drifting.counter).audit()).toMatchObject({ driftingKeys: 1 })
  await like(db.pool, broken, 1)
  await db.pool.query(`select pgtally.fail_event($1, $2, '1.0.0.' || n, now(), n::text, 1, '{"secret": "of the event"}', 7, $3) from generate_series(1, 2) n`, [blog.counter, smuggled, `no ${smuggled}`])
  await db.pool.query(`select pgtally.record_consumer_error($1, $2, $3)`, [blog.counter, smuggled, `away: ${smuggled}`])

  await using worker = tally.worker()
  await using http = await serveHttp(tally, [worker], { port: 0 })
  const { page, complaints, requests } = await openPage(browser, http.url, { colorScheme: 'light' })
  await reads(page.locator('#connection'), '✓ live')
  const rows = counterRows(page, blog.counter)
  await rows.waitFor()
  // Somebody is looking by now, so the batches name their hot keys.
  await like(db.pool, blog, 3, 40)
  await like(db.pool, blog, 7, 2)
  for (let n = 0; n < 5; n++) await tally.counter(smuggled).add(db.pool, smuggled)
  await reads(rows, / 42 0 not audited$/)
  const status = await tally.status()
  const now = status.counters.find(({ name }) => name === blog.counter)
  expect(now).toMatchObject({ events: 42, pendingEvents: 0 })
  const text = await cells(rows)
  expect(text[0]).toBe(`✓ ok ${blog.counter} ${now?.source} → ${now?.target}`)
  expect(text.slice(3)).toEqual(['0', '0', '42', '0', 'not audited'])
  await like(db.pool, blog, 3, 2)
  await reads(rows, / 44 0 not audited$/)

  await reads(counterRows(page, smuggled), new RegExp(` 0 0 5 0 has no source$`))
  await reads(counterRows(page, drifting.counter), /drifting .* 1 drifting 10 keys, .* ago$/)
  await reads(counterRows(page, broken.counter), /failing .* 1 0 0 0 not audited Cannot go on \(.*\): column .*like_count.* does not exist Its target has changed.*/)
  // Trouble first.
  expect((await table(page, 'Counters').getByRole('button').allInnerTexts()).slice(0, 2).toSorted()).toEqual([broken.counter, drifting.counter].toSorted())
  await reads(page.locator('#verdict'), '✕ 3 of 6 need attention')
  expect(await page.title()).toBe('(3) pgtally')

  await reads(table(page, 'Hot keys').getByRole('row').nth(1), `3 ${blog.counter} 42 +42`)
  await reads(table(page, 'Hot keys').getByRole('row').filter({ hasText: '<img' }), `${smuggled} ${smuggled} 5 +5`)
  const consumer = table(page, 'Consumers').getByRole('row').filter({ hasText: 'away' })
  await reads(consumer, new RegExp(`of ${blog.counter} ✕ failing away: <img .* 44 .* 0 0 2$`))
  await reads(table(page, 'Consumers').getByRole('row').filter({ hasText: 'mailer' }), /paused since .* ago 44 /)
  await reads(table(page, 'Dead letters').getByRole('row').nth(1), new RegExp(`^2 <img.* of ${blog.counter} 2 .*after 7× no <img`))
  expect(await page.content()).not.toContain('of the event')
  await reads(table(page, 'Queues').getByRole('row').filter({ hasText: blog.counter }), /is written/)
  await reads(page.locator('#process'), /^This worker: pgtally \d.* process \d+ · up .* PostgreSQL \d/)

  // The charts: of all, of one.
  await reads(page.locator('#rate-chart figcaption'), /^Events per second applied [\d.,]+\/s written [\d.,]+\/s now$/)
  expect(await page.getByRole('img', { name: /^Lag in the last minutes: lag now .*, at most / }).locator('canvas').count()).toBe(1)
  expect(await rows.locator('canvas').count()).toBe(2)
  await page.getByRole('button', { name: blog.counter, exact: true }).click()
  await reads(page.locator('#selected'), blog.counter)
  await waitFor(async () => (await table(page, 'Hot keys').getByRole('row').count()) === 3, { what: 'the hot keys of this counter' })
  await page.getByRole('button', { name: 'Show all counters' }).click()
  await reads(page.locator('#selected'), 'all counters')

  await page.getByLabel('Filter').fill(drifting.posts.toUpperCase())
  await waitFor(async () => (await table(page, 'Counters').getByRole('button').count()) === 1, { what: 'one counter' })
  await page.getByLabel('Filter').fill('no such')
  await reads(page.locator('#counters'), /No counter has that/)
  await page.getByLabel('Filter').fill('')

  await keepScreenshot(page, 'dashboard-light')
  const ground = () => page.evaluate<string>('getComputedStyle(document.body).backgroundColor')
  const lightGround = await ground()
  await page.emulateMedia({ colorScheme: 'dark' })
  expect(await ground()).not.toBe(lightGround)
  await keepScreenshot(page, 'dashboard-dark')
  for (const width of [375, 768, 2200]) {
    await page.setViewportSize({ width, height: 812 })
    expect(await overflow(page)).toBeLessThanOrEqual(0)
    if (width === 375) await keepScreenshot(page, 'dashboard-phone')
  }
  expect(complaints).toEqual([])
  expect(requests.filter((url) => !url.startsWith(`${http.url}/`))).toEqual([])
  expect(await page.title()).toBe('(3) pgtally')

  const file = await fetch(`${http.url}/dashboard/main.js`)
  expect(file.headers.get('content-security-policy')).toMatch(/^default-src 'none'; script-src 'self'; style-src 'self';.*frame-ancestors 'none'/)
})

test('a token is asked for by the page, kept by the tab, and neither in an address nor in a cookie', async () => {
  await using http = await serveHttp(tally, [], { port: 0, token: 'sesame-42' })
  const { page, complaints, requests } = await openPage(browser, http.url)
  await page.getByLabel('Token').waitFor()
  // Until there is one, nothing is asked.
  expect(requests.filter((url) => url.includes('data.json'))).toEqual([])
  expect(complaints).toEqual([])
  const enter = async (token: string) => {
    await page.getByLabel('Token').fill(token)
    await page.getByRole('button', { name: 'Show', exact: true }).click()
  }
  await enter('nö')
  await reads(page.getByRole('alert'), 'That is not the token.')
  await enter('sesame-43')
  await waitFor(async () => complaints.length === 1, { what: 'the refusal of the server' })
  await reads(page.getByRole('alert'), 'That is not the token.')
  expect(await page.locator('#content').isVisible()).toBe(false)
  await enter('sesame-42')
  await table(page, 'Counters').waitFor()
  expect(await page.getByLabel('Token').isVisible()).toBe(false)
  await page.reload()
  await table(page, 'Counters').waitFor()
  expect(requests.filter((url) => url.includes('sesame'))).toEqual([])
  expect(await page.context().cookies()).toEqual([])
  // While the next answer is under way, which is not shown any more.
  const [asked, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  await page.route('**/data.json', async (route) => {
    asked.resolve()
    await released.promise
    await route.continue()
  })
  await asked.promise
  await page.getByRole('button', { name: 'Forget token' }).click()
  await page.getByLabel('Token').waitFor()
  const answered = page.waitForResponse('**/data.json')
  released.resolve()
  await (await answered).finished()
  await page.evaluate(() => fetch('dashboard/main.js').then((file) => file.text()))
  expect(await page.locator('#content').isVisible()).toBe(false)
  await page.reload()
  await page.getByLabel('Token').waitFor()
  // The browser itself complains about the one refusal.
  expect(complaints).toEqual([expect.stringContaining('401')])

  const shell = await (await fetch(http.url)).text()
  expect(shell).not.toContain('sesame')
  expect((await fetch(`${http.url}/dashboard/data.json`)).status).toBe(401)
})

test('says so when the database is away, with the age of what it shows, and goes on when it is back', async (context) => {
  await using server = await dedicatedServer(context)
  await using own = await createTestDatabase(server.connectionString)
  const ownTally = await installed(own)
  const blog = await createBlog(own, ownTally)
  await using worker = ownTally.worker()
  await using http = await serveHttp(ownTally, [worker], { port: 0 })
  const { page, complaints } = await openPage(browser, http.url)
  await reads(page.locator('#connection'), '✓ live')
  await like(own.pool, blog, 1)
  await like(own.pool, blog, 1)
  await reads(counterRows(page, blog.counter), / 2 0 not audited$/)
  await server.crash()
  await reads(page.locator('#trouble'), /^The database does not answer: .* What is shown was read \d+ s ago\.$/)
  await reads(page.locator('#connection'), '✕ no data')
  // What was known stays.
  await reads(counterRows(page, blog.counter), / 2 0 not audited$/)
  await server.restart()
  await reads(page.locator('#connection'), '✓ live')
  expect(await page.locator('#trouble').isVisible()).toBe(false)
  await like(own.pool, blog, 1)
  await reads(counterRows(page, blog.counter), / 3 0 not audited$/)
  await http.close()
  await reads(page.locator('#trouble'), /^The worker does not answer/)
  expect(complaints.filter((complaint) => !complaint.includes('ERR_CONNECTION_REFUSED'))).toEqual([])
})

test('two hundred counters: the troubled first, the others to be found; a slow database is no trouble yet', async () => {
  const counter = (n: number): Status['counters'][number] => {
    const place = { name: `counter ${n}`, queue: `counter ${n}`, source: `public.likes_${n}`, target: 'public.posts.like_count' }
    const figures = { pendingEvents: n, lagSeconds: n === 150 ? 99 : 0.01, carriedKeys: 0, events: 1_000_000 + n, batches: 1, droppedEvents: 0, lateEvents: 0, futureEvents: 0, buckets: [] }
    const problems = n === 177 ? ['It is wrong. Mend it.'] : []
    return { ...place, ...figures, problems, lastBatchAt: null, lastError: null, lastErrorAt: null, lastAudit: null, lastSample: null }
  }
  const queue = (n: number): Status['queues'][number] => {
    const slots = { currentSlot: 0, slotBytes: [8192, 8192, 8192], slotWaitsFor: [[], n === 111 ? ['slow one'] : [], []] }
    return { name: `counter ${n}`, keyType: 'bigint', rotationPeriodSeconds: 300, consumers: [], pendingEvents: 0, lagSeconds: 0, ...slots }
  }
  const numbers = Array.from({ length: 200 }, (_, n) => n)
  const fixed = { database: 'many', serverVersion: '18.0', counters: numbers.map(counter), queues: numbers.map(queue), consumers: [], latestDeadLetters: [], oldestTransactionSeconds: null }
  let ageMs = 0
  const known = {
    get: async () => {
      const value: Status = { readAt: new Date(Date.now() - ageMs).toISOString(), ...fixed }
      return { value, readAt: performance.now() - ageMs, error: ageMs > 0 ? 'late' : undefined, cause: undefined }
    },
  }
  await using http = await HttpServer.listen(dashboardRoutes(known, [], false), { port: 0, host: '127.0.0.1', logger: silent })
  const { page, complaints } = await openPage(browser, http.url)
  await reads(page.locator('#more'), '20 of 200 counters shown. Show all 200')
  const names = () => table(page, 'Counters').getByRole('button').allInnerTexts()
  expect((await names()).slice(0, 3)).toEqual(['counter 177', 'counter 150', 'counter 0'])
  await reads(counterRows(page, 'counter 177'), /It is wrong\. Mend it\.$/)
  await reads(counterRows(page, 'counter 150'), /behind .* 99\.0 s 150 0 1,000,150 0 not audited$/)
  await reads(table(page, 'Queues').getByRole('row').nth(1), /^counter 111 .* waits for slow one/)
  await page.getByLabel('Order').selectOption('pending')
  await waitFor(async () => (await names())[0] === 'counter 199', { what: 'the other order' })
  await page.getByRole('button', { name: 'Show all 200' }).first().click()
  await waitFor(async () => (await names()).length === 200, { what: 'all counters' })
  // Only what is on the screen is drawn.
  expect(await table(page, 'Counters').locator('canvas').count()).toBeLessThan(200)
  await page.getByLabel('Filter').fill('likes_19')
  await waitFor(async () => (await names()).length === 11, { what: 'those that fit' })

  ageMs = 8000
  await reads(page.locator('#connection'), '! slow')
  expect(await page.locator('#trouble').isVisible()).toBe(false)
  ageMs = 15_000
  await reads(page.locator('#trouble'), /does not answer: late\. What is shown was read \d+ s ago\.$/)
  await page.getByRole('button', { name: 'Pause' }).click()
  ageMs = 0
  await page.getByRole('button', { name: 'Go on' }).click()
  await reads(page.locator('#connection'), '✓ live')
  expect(complaints).toEqual([])
})
