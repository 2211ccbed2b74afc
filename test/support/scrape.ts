import { serveHttp } from '../../src/http.ts'
import type { HttpServer } from '../../src/http.ts'

/** As `serveHttp()`, on a free port. */
export function served(...[tally, services, options]: Parameters<typeof serveHttp>): Promise<HttpServer> {
  return serveHttp(tally, services, { port: 0, ...options })
}

interface Family {
  name: string
  type: string
  help: string
  /** The names of its labels, in order. */
  labels: string[]
}

interface Scrape {
  text: string
  families: Family[]
  /** The value of a metric, or undefined where there is none with these labels. */
  value(name: string, labels?: Record<string, string>): number | undefined
}

/** What `/metrics` says. Reads what pgtally writes; whether Prometheus can read it too, promtool says. */
export async function scrape({ url }: HttpServer): Promise<Scrape> {
  const response = await fetch(`${url}/metrics`)
  const text = await response.text()
  if (response.status !== 200) throw new Error(`/metrics answers ${response.status}: ${text}`)
  const values = new Map<string, number>()
  for (const [, name = '', labels = '', value] of text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)) {
    const id = identity(name, Object.fromEntries(labelsIn(labels)))
    if (values.has(id)) throw new Error(`${id} is there twice`)
    values.set(id, Number(value))
  }
  const families = [...text.matchAll(/^# HELP (\w+) (.*)\n# TYPE \w+ (\w+)\n(?:\w+\{(.*)\} )?/gm)].map(([, name = '', help = '', type = '', labels = '']) => ({
    name,
    type,
    help,
    labels: labelsIn(labels).map(([label]) => label).filter((label) => label !== 'le'),
  }))
  return { text, families, value: (name, labels = {}) => values.get(identity(name, labels)) }
}

function labelsIn(text: string): [name: string, value: string][] {
  return [...text.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name = '', value]) => [name, JSON.parse(`"${value}"`) as string])
}

function identity(name: string, labels: Record<string, string>): string {
  return `${name} ${JSON.stringify(Object.entries(labels).toSorted())}`
}
