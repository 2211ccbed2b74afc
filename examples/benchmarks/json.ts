import { readFile, writeFile } from 'node:fs/promises'

import type { Extent, Machine } from './bench.ts'
import { summarize } from './results.ts'
import type { Result } from './results.ts'

const packages = ['pg', 'pg-boss', 'graphile-worker'] as const

async function versions(): Promise<Record<string, string>> {
  const versionOf = async (directory: string) => (JSON.parse(await readFile(new URL(`../../${directory}package.json`, import.meta.url), 'utf8')) as { version: string }).version
  const entries = await Promise.all(packages.map(async (name) => [name, await versionOf(`node_modules/${name}/`)] as const))
  return { pgtally: await versionOf(''), ...Object.fromEntries(entries) }
}

/** Machine, settings, every sample, and what the tables show of them. */
export async function writeJson(file: string, { machine, extent, results }: { machine: Machine; extent: Extent; results: readonly Result[] }): Promise<void> {
  const content = {
    date: new Date().toISOString(),
    command: ['npm run bench --', ...process.argv.slice(2)].join(' ').replace(/(postgres(?:ql)?:\/\/[^:@\s]*):[^@\s]*@/, '$1:***@'),
    machine,
    versions: await versions(),
    extent,
    results: results.map((result) => ({ ...result, summary: summarize(result) })),
  }
  await writeFile(file, `${JSON.stringify(content, null, 2)}\n`)
}
