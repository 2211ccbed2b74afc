import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'

import { chromium } from 'playwright-core'
import type { Browser, BrowserContextOptions, Page } from 'playwright-core'

const usualPlaces = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/snap/bin/chromium',
  '/usr/bin/google-chrome-stable',
  '/usr/bin/google-chrome',
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
]

export const howToGetOne = 'needs a browser: apt-get install chromium, or set PGTALLY_TEST_BROWSER to the path of a Chromium or Chrome'

/** Undefined where no browser is installed. */
export async function launchBrowser(): Promise<Browser | undefined> {
  const executablePath = process.env['PGTALLY_TEST_BROWSER'] ?? usualPlaces.find((place) => existsSync(place))
  if (executablePath === undefined) return undefined
  // Its sandbox needs rights that root in a container lacks; it is shown nothing but our own page.
  return chromium.launch({ executablePath, chromiumSandbox: false, args: ['--disable-dev-shm-usage'] })
}

export interface WatchedPage {
  page: Page
  /** What the page has complained about: errors and warnings of the console, and uncaught ones. */
  complaints: string[]
  /** Each request of the page, by URL. */
  requests: string[]
}

// It asks every two seconds, and a test would wait for that all the time.
const hurry = 'const wait = window.setTimeout; window.setTimeout = (work, ms, ...rest) => wait(work, ms / 10, ...rest)'

/** A page in a session of its own, which asks for data five times a second. */
export async function openPage(browser: Browser, url: string, options: BrowserContextOptions = {}): Promise<WatchedPage> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options })
  const page = await context.newPage()
  await page.addInitScript(hurry)
  const complaints: string[] = []
  const requests: string[] = []
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(error.message))
  page.on('request', (request) => requests.push(request.url()))
  await page.goto(url)
  return { page, complaints, requests }
}

const artifacts = new URL('../../test-artifacts/', import.meta.url)

/** Kept for whoever wants to look, in test-artifacts/. */
export async function keepScreenshot(page: Page, name: string): Promise<void> {
  await mkdir(artifacts, { recursive: true })
  await page.screenshot({ path: new URL(`${name}.png`, artifacts).pathname, fullPage: true })
}
