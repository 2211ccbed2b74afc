import type { Bench } from '../bench.ts'
import { explain } from '../plans.ts'
import type { Explained, PlanNode } from '../plans.ts'
import { formatNumber } from '../report.ts'
import { median } from '../results.ts'
import type { Metric, NotRun, Result } from '../results.ts'
import { createUserTarget, describeBacklog, waysToApply, withBacklog } from './apply.ts'

const named = {
  due: 'finding out what is due and where to cut',
  reading: 'reading the events',
  summing: 'summing them by key',
  packing: 'packing what is put off, and unpacking it',
  finding: "finding the keys' rows, joining the sums to them",
  locking: 'locking them before',
  updating: 'updating them',
  planning: 'planning',
  other: 'other: functions, round trips, commits, writing the plans out',
  all: 'all of it',
}
type Kind = keyof typeof named

interface Figures {
  ms: number
  walMb: number
}
type Found = Partial<Record<Kind, Figures>>
type Profile = Found & { all: Figures }

/** What the bare statement and pgtally spend their time on, node by node of every plan. */
export async function profileApplying(bench: Bench): Promise<Result> {
  const target = await createUserTarget(bench)
  const ways = (await waysToApply(bench, target)).map((way) => ({ ...way, profiles: [] as Profile[], plainMs: [] as number[] }))
  const metrics: Metric[] = ways.flatMap(({ name }) => [
    { key: `${name} ms`, title: `${name}, ms` },
    { key: `${name} walMb`, title: 'WAL MB', digits: 1 },
  ])
  const notRun = await missing(bench)
  for (let round = 1; round <= bench.repetitions && notRun.length === 0; round++) {
    for (const { name, apply, profiles, plainMs } of ways) {
      bench.signal.throwIfAborted()
      const ms = await withBacklog(bench, target, async () => {
        const began = performance.now()
        await apply(bench.pool)
        return performance.now() - began
      })
      const profile = await withBacklog(bench, target, () => profiled(bench, apply))
      plainMs.push(ms)
      profiles.push(profile)
      bench.progress(`profile ${round}/${bench.repetitions} ${name}: ${formatNumber(ms)} ms, ${formatNumber(profile.all.ms)} ms with its plans`)
    }
  }
  // One run of each, that of median length, so that the lines add up.
  const shown = ways.map(({ name, profiles, plainMs }) => ({ name, profile: profiles.toSorted((a, b) => a.all.ms - b.all.ms)[profiles.length >> 1], plainMs: median(plainMs) }))
  const row = (name: string, figuresOf: (way: (typeof shown)[number]) => Partial<Figures> | undefined) => ({
    name,
    samples: Object.fromEntries(shown.flatMap((way) => Object.entries(figuresOf(way) ?? {}).map(([figure, value]) => [`${way.name} ${figure}`, [value]]))),
  })
  const kinds = Object.keys(named) as Kind[]
  const rows = [...kinds.map((kind) => row(named[kind], ({ profile }) => profile?.[kind])), row('all of it, without a look at its plans (median)', ({ plainMs }) => ({ ms: plainMs }))]
  return { id: 'profile-applying', title: `Where the time of applying goes, ${describeBacklog(bench)}, ${target.title}`, metrics, rows: notRun.length > 0 ? [] : rows, notRun }
}

async function missing(bench: Bench): Promise<NotRun[]> {
  try {
    await explain(bench.connectionString, async () => {})
    return []
  } catch (error) {
    bench.signal.throwIfAborted()
    return [{ name: 'plans of applying', reason: `${error instanceof Error ? error.message : error}; it takes a superuser and auto_explain, of PostgreSQL's contrib modules` }]
  }
}

async function profiled({ pool, connectionString }: Bench, apply: Parameters<typeof explain>[1]): Promise<Profile> {
  const writtenMb = async () => (await pool.query<{ mb: number }>(`select (pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') / 2 ^ 20)::float8 as mb`)).rows[0]?.mb ?? Number.NaN
  const before = await writtenMb()
  const { plans, planningMs, ms } = await explain(connectionString, apply)
  const all = { ms, walMb: (await writtenMb()) - before }
  const found = { ...addUp(plans), planning: { ms: planningMs, walMb: 0 } }
  const other = { ...all }
  for (const figures of Object.values(found)) {
    other.ms -= figures.ms
    other.walMb -= figures.walMb
  }
  return { ...found, other, all }
}

/** A node's own share is what it took less what the nodes below it took. (A CTE hangs elsewhere than where it is read; here both are of one kind.) */
function addUp(plans: Explained['plans']): Found {
  const found: Found = {}
  const add = (kind: Kind, node: PlanNode, sign: 1 | -1) => {
    // That is what is left over in the end.
    if (kind === 'other') return
    const figures = (found[kind] ??= { ms: 0, walMb: 0 })
    figures.ms += sign * node['Actual Total Time'] * node['Actual Loops']
    figures.walMb += (sign * node['WAL Bytes']) / 2 ** 20
  }
  const visit = (node: PlanNode, above: Kind) => {
    const kind = kindOf(node, above)
    add(kind, node, 1)
    for (const below of node.Plans ?? []) {
      add(kind, below, -1)
      visit(below, kind)
    }
  }
  for (const { 'Query Text': text, Plan } of plans) visit(Plan, /^update|for no key update/.test(text) ? 'finding' : /packed_\d+ \(|with taken/.test(text) ? 'packing' : 'other')
  return found
}

function kindOf(node: PlanNode, above: Kind): Kind {
  const type = node['Node Type']
  if (type === 'LockRows') return 'locking'
  if (type === 'ModifyTable' && above === 'finding') return 'updating'
  // Its statements have plans of their own.
  if (type === 'Function Scan' && node['Function Name'] !== 'unnest') return 'other'
  if (above === 'locking' || above === 'updating') return 'finding'
  if (!readsEvents(node)) return above
  if (/Aggregate|Sort/.test(type)) return 'summing'
  return above === 'summing' ? 'reading' : above === 'other' ? 'due' : above
}

const readsEvents = (node: PlanNode): boolean => node['Relation Name']?.startsWith('event_') || (node.Plans ?? []).some(readsEvents)
