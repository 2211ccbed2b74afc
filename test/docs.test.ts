import { execFile } from 'node:child_process'
import { globSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { howTo, readDocument, splitStatements, type Document } from './docs/blocks.ts'
import { typeErrors, writeModules, type Step } from './docs/modules.ts'
import { createTestDatabase } from './support/database.ts'

const runner = fileURLToPath(new URL('docs/run-document.ts', import.meta.url))
const hooks = new URL('docs/resolve-pgtally.ts', import.meta.url).href
const paths = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', ...globSync('docs/**/*.md').toSorted()]
const documents = await Promise.all(paths.map(readDocument))
const toRun = documents.filter(({ blocks, problems }) => problems.length > 0 || blocks.some(({ exception }) => exception === undefined))

let steps: Awaited<ReturnType<typeof writeModules>>['steps']
let modules: Awaited<ReturnType<typeof writeModules>>['modules']
let scratch: string

beforeAll(async () => {
  scratch = await mkdtemp(path.join(tmpdir(), 'pgtally-docs-steps-'))
  ;({ steps, modules } = await writeModules(documents))
})
afterAll(() => rm(scratch, { recursive: true, force: true }))

/** In a process of its own, as a block may do anything. */
async function run(document: Document, todo: readonly Step[]): Promise<void> {
  await using db = await createTestDatabase()
  const file = path.join(scratch, document.path.replaceAll(/\W/g, '_'))
  await writeFile(file, JSON.stringify(todo))
  const args = ['--import', hooks, runner, file, ...(document.emptyDatabase ? ['--empty'] : [])]
  const env = { ...process.env, DATABASE_URL: db.connectionString, NODE_OPTIONS: `--import=${hooks}`, NODE_NO_WARNINGS: '1' }
  const { stdout } = await promisify(execFile)(process.execPath, args, { env, timeout: 100_000 })
  const failure = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as { at?: string; message?: string }
  if (failure.at !== undefined) throw new Error(`${failure.at} fails: ${failure.message}\n${howTo}`)
}

describe('the code in the documents', { timeout: 120_000 }, () => {
  test.concurrent('has no type errors', async () => {
    const errors = await typeErrors(modules)
    expect(errors === '' ? '' : errors + howTo).toBe('')
  })

  test.concurrent.for(toRun)('of $path runs', async (document) => {
    expect(document.problems.length > 0 ? [...document.problems, howTo].join('\n') : '').toBe('')
    await expect(run(document, steps.get(document) ?? [])).resolves.toBeUndefined()
  })

  test('is left out seldom', () => {
    // Signatures and the help of commands are left out by the generator.
    const blocks = documents.filter(({ generated }) => !generated).flatMap((document) => document.blocks)
    const exceptions = blocks.filter(({ exception }) => exception !== undefined)
    const allowed = Math.ceil(blocks.length / 4)
    expect(exceptions.slice(allowed).map(({ at, exception }) => ({ at, ...exception }))).toEqual([])
  })
})

test('statements of a script are told apart', () => {
  expect(splitStatements(`select ';' -- ; no
    ; do $x$ begin; end $x$; /* ; */ select "a;b"; -- the end`)).toHaveLength(3)
})

test('what a block does wrong is told with its place', async () => {
  const [document] = documents
  if (document === undefined) throw new Error('There is no document')
  const failing: Step = { at: 'docs/some.md:7', kind: 'sql', text: 'select 1;\nselect 1 / 0' }
  await expect(run(document, [failing])).rejects.toThrow(/^docs\/some\.md:7 fails: .*division by zero, in: select 1 \/ 0/)
})
