import { execFile } from 'node:child_process'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'

import packageJson from '../../package.json' with { type: 'json' }
import type { Block, Document } from './blocks.ts'

const repository = path.resolve(import.meta.dirname, '../..')
/** Ignored by git, and not below node_modules, where Node.js runs no TypeScript. */
const directory = path.join(repository, '.cache/docs')

/** One block with those that continue it, as a file. */
interface Module {
  file: string
  /** Where each line of the file is from. */
  origins: string[]
}

export type Step = { at: string } & ({ kind: 'ts'; file: string } | { kind: 'check'; text: string } | { kind: 'sql' | 'sh' | 'console' | 'json' | 'yaml'; text: string })

/** Writes the TypeScript of all documents to files, and gives what is to be run for each. */
export async function writeModules(documents: readonly Document[]): Promise<{ steps: Map<Document, Step[]>; modules: Module[] }> {
  await rm(directory, { recursive: true, force: true })
  const exported = await exportedNames()
  const modules: Module[] = []
  const steps = new Map<Document, Step[]>()
  for (const document of documents) {
    const folder = path.join(directory, document.path.replaceAll(/\W/g, '_'))
    await mkdir(folder, { recursive: true })
    const own: Step[] = []
    const run = document.blocks.filter(({ exception }) => exception?.kind !== 'not run')
    for (const [index, block] of run.entries()) {
      if (block.continues) {
        if (run[index - 1]?.language !== 'ts') document.problems.push(`${block.at}: "continues", but the block above is not TypeScript.`)
        continue
      }
      for (const { language, text } of block.setup) {
        if (language !== 'ts') own.push({ at: `${block.at} (setup)`, kind: language as 'sql', text })
      }
      const checks = (of: Block) => of.checks.map((text) => ({ at: `${of.at} (check)`, kind: 'check' as const, text }))
      if (block.language !== 'ts') {
        own.push({ at: block.at, kind: block.language, text: block.text }, ...checks(block))
        continue
      }
      const end = run.findIndex((each, at) => at > index && !each.continues)
      const parts = run.slice(index, end < 0 ? undefined : end)
      const module = await writeModule(path.join(folder, `line-${block.line}.ts`), parts, exported)
      modules.push(module)
      if (block.exception === undefined) own.push({ at: block.at, kind: 'ts', file: module.file }, ...parts.flatMap(checks))
    }
    steps.set(document, own)
  }
  return { steps, modules }
}

/** A module of the blocks, which imports what they use and do not declare. */
async function writeModule(file: string, blocks: readonly Block[], exported: Readonly<Record<string, string>>): Promise<Module> {
  const lines: string[] = []
  const origins: string[] = []
  for (const block of blocks) {
    for (const { language, text } of block.setup) {
      if (language !== 'ts') continue
      for (const line of text.split('\n')) {
        lines.push(line)
        origins.push(`${block.at} (setup)`)
      }
    }
    for (const [index, line] of block.text.split('\n').entries()) {
      lines.push(line)
      origins.push(block.at.replace(/\d+$/, String(block.line + 1 + index)))
    }
  }
  const text = lines.join('\n')
  const declared = new Set([
    ...[...text.matchAll(/\b(?:const|let|function|class|type|interface)\s+(\w+)/g)].map(([, name]) => name),
    ...[...text.matchAll(/^(?:import|const)\s+(?:type\s+)?(?:(\w+)\s*,?\s*)?(?:\{([^}]*)\})?/gm)].flatMap(([, name, names = '']) => [name, ...names.split(/[\s,]+/)]),
  ])
  const header = Object.entries(exported)
    .filter(([name]) => !declared.has(name) && new RegExp(String.raw`(?<![.\w'])${name}\b(?!:)`).test(text))
    .map(([name, from]) => (from === 'pg' ? `import pg from 'pg'` : `import { ${name} } from '${from}'`))
  // The body's first line shares the header's last one, so that lines stay where they are.
  await writeFile(file, `${header.join('; ')};${text}\nexport {}\n`)
  return { file, origins }
}

async function exportedNames(): Promise<Record<string, string>> {
  const context = path.relative(path.join(directory, 'document'), path.join(import.meta.dirname, 'context.ts'))
  const index = await readFile(path.join(repository, 'src/index.ts'), 'utf8')
  const names = [...index.matchAll(/^export \{ ([\w, ]+) \}/gm)].flatMap(([, list = '']) => list.split(', '))
  return {
    ...Object.fromEntries(['pool', 'client', 'counters', 'tally', 'logger'].map((name) => [name, context])),
    ...Object.fromEntries(names.map((name) => [name, 'pgtally'])),
    pg: 'pg',
    z: 'zod',
  }
}

/** What the compiler says of all modules together, by the places in the documents: nothing, where their types are right. */
export async function typeErrors(modules: readonly Module[]): Promise<string> {
  const paths = Object.entries(packageJson.exports).flatMap(([name, to]) =>
    typeof to === 'string' ? [] : [[path.posix.join('pgtally', name), [path.join(repository, to.default.replace('dist', 'src').replace(/js$/, 'ts'))]]],
  )
  const config = {
    extends: path.join(repository, 'tsconfig.json'),
    compilerOptions: { paths: Object.fromEntries(paths), noUnusedLocals: false, noUnusedParameters: false, isolatedModules: false },
    include: ['**/*.ts'],
  }
  await writeFile(path.join(directory, 'tsconfig.json'), JSON.stringify(config))
  const tsc = path.join(repository, 'node_modules/.bin/tsc')
  const printed = await new Promise<string>((resolve) => {
    execFile(tsc, ['-p', directory, '--pretty', 'false'], { cwd: repository }, (_, stdout, stderr) => resolve(stdout + stderr))
  })
  return printed.replaceAll(/^(\S+)\((\d+),\d+\)/gm, (whole, file: string, line: string) => {
    const module = modules.find((each) => each.file === path.resolve(repository, file))
    return module?.origins[Number(line) - 1] ?? whole
  })
}
