import { globSync } from 'node:fs'
import { readFile } from 'node:fs/promises'

interface Packed {
  unpackedSize: number
  files: { path: string; size: number }[]
}

const limitBytes = 1_000_000
const expected = [
  /^(README|CHANGELOG|LICENSE)(\.md)?$/,
  /^package\.json$/,
  /^dist\/[\w/-]+\.(js|d\.ts)$/,
  /^sql\/(functions|migrations)\/[\w-]+\.sql$/,
  /^dashboard\/[\w-]+\.(html|css|js|svg)$/,
  // What is imported elsewhere; the documents are read where the project is.
  /^docs\/(grafana|prometheus)\/[\w-]+\.(json|yml)$/,
]

/**
 * Whether a package has all that it needs, nothing else, and is small.
 *
 * @param printed what `npm pack --json` has printed
 * @throws Error that names what is wrong
 */
export function checkContents(printed: string, repository: string): void {
  const [packed] = JSON.parse(printed) as [Packed]
  const names = new Set(packed.files.map(({ path }) => path))
  const superfluous = [...names].filter((name) => !expected.some((pattern) => pattern.test(name)))
  if (superfluous.length > 0) throw new Error(`It has what nobody needs: ${superfluous.join(', ')}. See "files" in package.json.`)

  const needed = [
    ...globSync('src/**/*.ts', { cwd: repository }).flatMap((file) => ['.js', '.d.ts'].map((end) => file.replace(/^src/, 'dist').replace(/\.ts$/, end))),
    ...globSync('sql/**/*.sql', { cwd: repository }),
    ...globSync('dashboard/*.{html,css,js,svg}', { cwd: repository }),
    'README.md', 'LICENSE', 'CHANGELOG.md',
  ]
  const missing = needed.filter((name) => !names.has(name))
  if (missing.length > 0) throw new Error(`It lacks ${missing.join(', ')}.`)
  if (packed.unpackedSize > limitBytes) {
    const largest = packed.files.toSorted((a, b) => b.size - a.size).slice(0, 10).map(({ path, size }) => `${path} (${size})`)
    throw new Error(`Unpacked it has ${packed.unpackedSize} bytes, more than ${limitBytes}. The largest files: ${largest.join(', ')}.`)
  }
}

/** Whether the changelog begins with the package's version and the license is the one that is named. */
export async function checkPapers(repository: string, { version, license }: { version: string; license: string }): Promise<void> {
  const [changelog, text] = await Promise.all(['CHANGELOG.md', 'LICENSE'].map((file) => readFile(`${repository}/${file}`, 'utf8')))
  const [, newest] = /^## (\S+)/m.exec(changelog ?? '') ?? []
  if (newest !== version) throw new Error(`CHANGELOG.md begins with ${newest}, and package.json has the version ${version}.`)
  if (!text?.startsWith(`${license} License`)) throw new Error(`package.json names the license ${license}, and LICENSE is another.`)
}
