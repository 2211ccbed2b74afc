import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

import { Application } from 'typedoc'

import packageJson from '../../package.json' with { type: 'json' }

export const apiDirectory = 'docs/api'
const root = path.resolve(import.meta.dirname, '../..')

/** Of typedoc-plugin-markdown. */
const pages = {
  // One page for each export of the package.
  router: 'module',
  hidePageHeader: true,
  hideBreadcrumbs: true,
  parametersFormat: 'table',
  propertiesFormat: 'table',
  interfacePropertiesFormat: 'table',
  typeAliasPropertiesFormat: 'table',
  tableColumnSettings: { hideInherited: true, hideModifiers: true, hideDefaults: true, hideOverrides: true, hideSources: true },
  expandParameters: true,
}

/** The API of the package's exports from their docstrings, by TypeDoc. */
export async function apiReference(): Promise<Map<string, string>> {
  const exported = Object.entries(packageJson.exports).flatMap(([name, to]) => (typeof to === 'string' ? [] : [[name, to.default] as const]))
  const directory = await mkdtemp(path.join(tmpdir(), 'pgtally-api-'))
  try {
    await write(directory, exported.map(([, file]) => file))
    const texts = exported.map(async ([name, file]) => {
      const page = path.basename(file).replace(/js$/, 'md')
      const text = await readFile(path.join(directory, page), 'utf8')
      return [path.posix.join(apiDirectory, page), withTitle(text, path.posix.join('pgtally', name))] as const
    })
    return new Map(await Promise.all(texts))
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

async function write(directory: string, exported: readonly string[]): Promise<void> {
  const app = await Application.bootstrapWithPlugins({
    plugin: ['typedoc-plugin-markdown'],
    entryPoints: exported.map((file) => path.join(root, file.replace('dist', 'src').replace(/js$/, 'ts'))),
    tsconfig: path.join(root, 'tsconfig.build.json'),
    readme: 'none',
    excludeInternal: true,
    excludePrivate: true,
    excludeExternals: true,
    disableSources: true,
    disableGit: true,
    groupOrder: ['Functions', 'Classes', 'Interfaces', 'Type Aliases'],
    // Types that only help to write the exported ones are shown in place.
    validation: { notExported: false, invalidLink: true, rewrittenLink: true, notDocumented: false, unusedMergeModuleWith: true },
    outputs: [{ name: 'markdown', path: directory }],
    logLevel: 'Warn',
    ...pages,
  })
  const project = await app.convert()
  if (project === undefined) throw new Error('TypeDoc cannot read the sources.')
  await app.generateOutputs(project)
  if (app.logger.hasWarnings() || app.logger.hasErrors()) throw new Error('TypeDoc has found mistakes in the docstrings; see above.')
}

function withTitle(text: string, name: string): string {
  const note = '<!-- Written by `npm run docs` from the docstrings in src/. -->'
  const titled = text.replace(/^# .*$/m, () => `${note}\n\n# The API of \`${name}\``).trimEnd()
  // The plugin counts PgtallyError.code and PgtallyErrorCode as one name.
  const page = titled.replaceAll('(#pgtallyerrorcode-1)', '(#pgtallyerrorcode)')
  return `${page.replaceAll(/^```ts\n.*?^```$/gms, withSurroundings)}\n`
}

/** What examples take for granted, for the test that runs them. */
const surroundings: Readonly<Record<string, string>> = {
  boss: `import { PgBoss } from 'pg-boss'
import { jobs, milestoneJobs, scheduleMaintenance, type MilestoneJob } from 'pgtally/pg-boss'
const boss = new PgBoss(process.env.DATABASE_URL ?? '')
const mail = (..._: unknown[]) => {}
await boss.start()
await boss.createQueue('congratulate')`,
  cache: `import { createClient } from 'redis'
import { createRedisCache } from 'pgtally/redis'
const cache = createRedisCache({ redis: createClient().on('error', () => {}), tally, ttlMs: 60_000 })`,
  serveHttp: "import { serveHttp } from 'pgtally/http'",
  totalPool: 'const totalPool = pool',
  total: 'const total = createTally({ pool })',
  "{ counter: 'post_likes'": `await tally.dropCounter('post_likes')
await tally.createCounter('post_likes', { source: { table: 'likes', key: 'post_id' }, milestones: [100] })`,
  '// In the definition:': `await tally.dropCounter('post_likes')
await pool.query('alter table posts add if not exists category_id int')
await tally.createCounter('post_likes', {
  source: { table: 'likes', key: 'post_id' },
  target: { table: 'posts', key: 'id', column: 'like_count' },
  buckets: [{ width: '1 hour', retain: '30 days' }],
  ranking: true,
  trending: [{ halfLife: '6 hours' }],
})`,
  "'reactions'": `await pool.query('create table reactions (post_id bigint, user_id bigint, emoji text, primary key (post_id, user_id))')`,
  '.waitFor(': 'await using worker = tally.worker()',
  "'mails'": "await tally.createQueue('mails', { keyType: 'text' })",
}

const unrunnable: readonly (readonly [part: string, reason: string])[] = [
  ['directory: ', 'it writes to a directory of the machine'],
  ['serveHttp(', 'the port may be taken; test/http-server.test.ts does the same'],
  ['tally.grant(', 'roles are the whole server\'s; test/access.test.ts does the same'],
]

function withSurroundings(block: string): string {
  const needed = Object.entries(surroundings).filter(([name]) => (/^\w+$/.test(name) ? new RegExp(String.raw`(?<![\w.])${name}(?!\w)`).test(block) : block.includes(name)) && !block.includes(`const ${name} `))
  const setup = needed.map(([, text]) => text).join('\n')
  const reason = unrunnable.find(([part]) => block.includes(part))?.[1]
  return `${reason === undefined ? '' : `<!-- types only: ${reason} -->\n`}${setup === '' ? '' : `<!-- setup ts\n${setup}\n-->\n`}${block}`
}
