import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { beforeAll, expect, test, type TestContext } from 'vitest'

const alerts = fileURLToPath(new URL('../docs/prometheus/alerts.yml', import.meta.url))
const dashboardFile = new URL('../docs/grafana/pgtally.json', import.meta.url)

interface Panel {
  id: number
  type: string
  title: string
  datasource?: { type: string; uid: string }
  gridPos: { x: number; y: number; w: number; h: number }
  targets?: { refId: string; expr: string; datasource: { uid: string } }[]
}

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(path.join(tmpdir(), 'pgtally-alerts-'))
  return () => rm(directory, { recursive: true })
})

/** Runs promtool on a file with that content: JSON, which is YAML. */
async function promtool(context: TestContext, args: string[], content?: unknown): Promise<void> {
  if (spawnSync('promtool', ['--version']).status !== 0) context.skip('needs promtool: apt-get install prometheus')
  const file = path.join(directory, `${args.join('-')}.json`)
  if (content !== undefined) await writeFile(file, JSON.stringify(content))
  try {
    execFileSync('promtool', content === undefined ? args : [...args, file], { stdio: 'pipe' })
  } catch (error) {
    const { stdout, stderr } = error as { stdout: Buffer; stderr: Buffer }
    throw new Error(`promtool ${args.join(' ')}: ${String(stdout)}${String(stderr)}`, { cause: error })
  }
}

const likes = 'counter="likes"'
const mailer = 'queue="mail",consumer="mailer"'

/** For each alert, series that shall raise it, each minute one value, when it is looked for, and its labels. All is well in the others. */
const raised: [alert: string, series: Record<string, string>, at: string, labels: Record<string, string>][] = [
  ['PgtallyNoWorker', { 'pgtally_worker_up{instance="a"}': '0x10', 'pgtally_worker_up{instance="b"}': '0x10' }, '3m', {}],
  ['PgtallyDatabaseUnreachable', { 'pgtally_database_up{instance="a"}': '0x10' }, '3m', {}],
  ['PgtallyCounterFailing', { [`pgtally_failing{${likes}}`]: '1x10' }, '3m', { counter: 'likes' }],
  ['PgtallyNoProgress', { [`pgtally_pending_events{${likes}}`]: '5+1x20', [`pgtally_batches_total{${likes}}`]: '7x20' }, '15m', { counter: 'likes' }],
  ['PgtallyLag', { [`pgtally_lag_seconds{${likes}}`]: '61x10' }, '6m', { counter: 'likes' }],
  ['PgtallyCarriedForLong', { [`pgtally_carried_keys{${likes}}`]: '1x10', [`pgtally_lag_seconds{${likes}}`]: '301+60x10' }, '6m', { counter: 'likes' }],
  ['PgtallyApplyErrors', { [`pgtally_worker_apply_errors_total{${likes}}`]: '0+1x20' }, '15m', { counter: 'likes' }],
  ['PgtallyProblems', { [`pgtally_problems{${likes}}`]: '1x20' }, '11m', { counter: 'likes' }],
  ['PgtallyDrift', { [`pgtally_drifting_keys{${likes}}`]: '4x3' }, '1m', { counter: 'likes' }],
  ['PgtallySlotsNotEmptied', { 'pgtally_queue_slot_size_bytes{queue="likes",slot="1"}': '1e8+1e6x90', 'pgtally_queue_rotation_period_seconds{queue="likes"}': '300x90' }, '80m', { queue: 'likes', slot: '1' }],
  ['PgtallyConsumerFailing', { [`pgtally_consumer_failing{${mailer}}`]: '1x10' }, '6m', { queue: 'mail', consumer: 'mailer' }],
  ['PgtallyConsumerLag', { [`pgtally_consumer_lag_seconds{${mailer}}`]: '301x20', [`pgtally_consumer_paused{${mailer}}`]: '0x20' }, '11m', { queue: 'mail', consumer: 'mailer' }],
  ['PgtallyConsumerPaused', { [`pgtally_consumer_paused{${mailer}}`]: '1x400' }, '361m', { queue: 'mail', consumer: 'mailer' }],
  ['PgtallyDeadLetters', { [`pgtally_consumer_dead_letters{${mailer}}`]: '2x3' }, '1m', { queue: 'mail', consumer: 'mailer' }],
  ['PgtallyOldTransaction', { pgtally_oldest_transaction_age_seconds: '3601+60x10' }, '6m', {}],
  ['PgtallyPoolExhausted', { 'pgtally_pool_waiting{instance="a"}': '1x10' }, '6m', { instance: 'a' }],
]

/** What a pgtally says with which all is well, though it is busy: one worker of two is down, slots fill and are emptied, a consumer is paused for a while. */
const well: Record<string, string> = {
  'pgtally_worker_up{instance="a"}': '1x400',
  'pgtally_worker_up{instance="b"}': '0x400',
  'pgtally_database_up{instance="a"}': '1x400',
  'pgtally_database_up{instance="b"}': '0x400',
  [`pgtally_failing{${likes}}`]: '0x400',
  [`pgtally_problems{${likes}}`]: '0x400',
  [`pgtally_drifting_keys{${likes}}`]: '0x400',
  [`pgtally_pending_events{${likes}}`]: '100x400',
  [`pgtally_batches_total{${likes}}`]: '0+100x400',
  [`pgtally_lag_seconds{${likes}}`]: '2x400',
  [`pgtally_carried_keys{${likes}}`]: '3x400',
  [`pgtally_worker_apply_errors_total{${likes}}`]: '3x400',
  'pgtally_queue_slot_size_bytes{queue="likes",slot="1"}': `${Array.from({ length: 26 }, () => '16384 1e8+0x13').join(' ')}`,
  'pgtally_queue_rotation_period_seconds{queue="likes"}': '300x400',
  [`pgtally_consumer_failing{${mailer}}`]: '0x400',
  [`pgtally_consumer_lag_seconds{${mailer}}`]: '0+60x350',
  [`pgtally_consumer_paused{${mailer}}`]: '1x350 0x50',
  [`pgtally_consumer_dead_letters{${mailer}}`]: '0x400',
  pgtally_oldest_transaction_age_seconds: '100x400',
  'pgtally_pool_waiting{instance="a"}': '0x4 1 0x395',
}

test('each alert is raised by what it is about, and by nothing else', async (context) => {
  const names = [...(await readFile(alerts, 'utf8')).matchAll(/- alert: (\w+)/g)].map(([, name]) => name)
  expect(raised.map(([alert]) => alert)).toEqual(names)
  await promtool(context, ['check', 'rules', alerts])
  const series = (all: Record<string, string>) => Object.entries(all).map(([name, values]) => ({ series: name, values }))
  const raising = raised.map(([alert, input, at, labels]) => ({
    interval: '1m',
    input_series: series(input),
    promql_expr_test: [{ expr: `count(ALERTS{alertname="${alert}",alertstate="firing"})`, eval_time: at, exp_samples: [{ labels: '{}', value: 1 }] }, { expr: `count(ALERTS{${[`alertname="${alert}"`, ...Object.entries(labels).map(([name, value]) => `${name}="${value}"`)].join(',')}})`, eval_time: at, exp_samples: [{ labels: '{}', value: 1 }] }],
  }))
  const quiet = ['30m', '350m', '380m'].map((at) => ({ expr: 'ALERTS{alertstate="firing"}', eval_time: at, exp_samples: [] }))
  await promtool(context, ['test', 'rules'], { rule_files: [alerts], evaluation_interval: '1m', tests: [...raising, { interval: '1m', input_series: series(well), promql_expr_test: quiet }] })
})

test('the dashboard is one that Grafana imports', async (context) => {
  const dashboard = JSON.parse(await readFile(dashboardFile, 'utf8')) as { schemaVersion: number; uid: string; id: null; title: string; templating: { list: { name: string; type: string }[] }; panels: Panel[] }
  expect(dashboard).toMatchObject({ id: null, uid: 'pgtally', title: 'pgtally', schemaVersion: expect.toSatisfy((version: number) => version >= 36) })
  expect(dashboard.templating.list.map(({ name, type }) => [name, type])).toEqual([['datasource', 'datasource'], ['counter', 'query']])
  const { panels } = dashboard
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length)
  const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) => Array.from({ length: w * h }, (_, cell) => `${x + (cell % w)} ${y + Math.floor(cell / w)}`))
  expect(new Set(cells).size).toBe(cells.length)
  expect(panels.every(({ gridPos: { x, w } }) => x + w <= 24)).toBe(true)
  for (const { title, datasource, targets = [] } of panels.filter(({ type }) => type !== 'row')) {
    expect({ title, datasource, targets }).toEqual({ title, datasource: { type: 'prometheus', uid: '${datasource}' }, targets: [expect.anything(), ...targets.slice(1)] })
    expect(new Set(targets.map(({ refId }) => refId)).size).toBe(targets.length)
  }
  const expressions = panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr.replaceAll('$__rate_interval', '5m').replaceAll('$counter', '.*')))
  await promtool(context, ['check', 'rules'], { groups: [{ name: 'dashboard', rules: expressions.map((expr, index) => ({ record: `panel:${index}`, expr })) }] })
})
