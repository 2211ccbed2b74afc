import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

import { version } from '../version.ts'
import type { Service } from '../service.ts'
import type { Status } from '../status.ts'
import { HotKeys } from '../worker/hot-keys.ts'
import type { HotKey } from '../worker/hot-keys.ts'
import { Worker } from '../worker/worker.ts'
import type { Known } from '../known.ts'
import type { Answer, Route } from './server.ts'

/** What the page is given every two seconds. */
export interface DashboardData {
  process: { version: string; pid: number; uptimeSeconds: number; node: string }
  /** What was last read from the database; null until then. */
  status: Status | null
  /** How old that is, in ms. */
  ageMs: number
  /** Why it could not be read just now. */
  error: string | null
  /** It is being read, which only takes long so far. */
  isLate: boolean
  /** Null where no worker runs in this process. */
  hotKeys: { windowSeconds: number; keys: HotKey[] } | null
}

const pageRoot = new URL('../../dashboard/', import.meta.url)
const hotKeysPerCounter = 10

/** All from here, and nothing in the page itself; so it can be told by a browser from whatever somebody may have smuggled into it. */
const pageHeaders = {
  'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
  'cross-origin-opener-policy': 'same-origin',
  'permissions-policy': 'camera=(), geolocation=(), microphone=()',
}

const files: readonly (readonly [name: string, type: string])[] = [
  ['style.css', 'text/css; charset=utf-8'],
  ['icon.svg', 'image/svg+xml'],
  ...['main', 'connection', 'history', 'charts', 'elements', 'format', 'more', 'counters', 'panels'].map((name) => [`${name}.js`, 'text/javascript; charset=utf-8'] as const),
]

/**
 * The page at `/`, its files, and the data that it shows. Page and files are the same for everyone and hold nothing of the database, so no token is asked for them; only the data is.
 *
 * @param isProtected whether the server asks for a token, so that the page does as well
 */
export function dashboardRoutes(known: Pick<Known<Status>, 'get'>, services: readonly Service[], isProtected: boolean): Route[] {
  const open = (path: string, respond: () => Promise<Answer>): Route => ({ path, open: true, respond })
  const ownFile = (name: string, type: string) => open(`/dashboard/${name}`, async () => ({ type, body: await readFile(new URL(name, pageRoot)), headers: pageHeaders }))
  const uplot = pathToFileURL(createRequire(import.meta.url).resolve('uplot'))
  const chartLibrary = (name: string, type: string) => open(`/dashboard/${name}`, async () => ({ type, body: await readFile(new URL(name, uplot)) }))
  return [
    open('/', async () => {
      const page = await readFile(new URL('index.html', pageRoot), 'utf8')
      return { type: 'text/html; charset=utf-8', body: page.replace('data-token="unknown"', `data-token="${isProtected ? 'needed' : 'none'}"`), headers: pageHeaders }
    }),
    ...files.map(([name, type]) => ownFile(name, type)),
    chartLibrary('uPlot.iife.min.js', 'text/javascript; charset=utf-8'),
    chartLibrary('uPlot.min.css', 'text/css; charset=utf-8'),
    { path: '/dashboard/data.json', respond: async () => ({ type: 'application/json', body: JSON.stringify(await readData(known, services)) }) },
  ]
}

async function readData(known: Pick<Known<Status>, 'get'>, services: readonly Service[]): Promise<DashboardData> {
  const workers = services.filter((service) => service instanceof Worker)
  const keys = workers.flatMap((worker) => worker.hotKeys.watch(hotKeysPerCounter))
  const { value: status, readAt, error, cause } = await known.get()
  return {
    process: { version, pid: process.pid, uptimeSeconds: process.uptime(), node: process.version },
    status: status ?? null,
    ageMs: status === undefined ? 0 : performance.now() - readAt,
    error: error ?? null,
    isLate: error !== undefined && cause === undefined,
    hotKeys: workers.length === 0 ? null : { windowSeconds: HotKeys.windowSeconds, keys },
  }
}
