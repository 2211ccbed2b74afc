// Checks the package as its users get it: built, packed and installed in an empty project.

import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'

import packageLock from '../../package-lock.json' with { type: 'json' }
import packageJson from '../../package.json' with { type: 'json' }
import { startEmbeddedServer } from '../../src/demo/embedded-server.ts'
import { checkContents, checkPapers } from './contents.ts'
import { findNode, findTypescript } from './tools.ts'

const execFileAsync = promisify(execFile)
const repository = path.resolve(import.meta.dirname, '../..')
const repositoryBin = path.join(repository, 'node_modules/.bin')
const oldestTypescript = '5.9'
const typescripts = [oldestTypescript, '6.0', '7.0']
const oldestNode = '22.12.0'

async function run(directory: string, command: string, ...args: string[]): Promise<string> {
  const { stdout } = await execFileAsync(command, args, { cwd: directory })
  return stdout
}

async function step(name: string, action: () => Promise<unknown>): Promise<void> {
  try {
    await action()
    console.log(`ok      ${name}`)
  } catch (error) {
    console.log(`FAILED  ${name}`)
    if (error instanceof Error && 'stdout' in error) console.log(error.stdout)
    throw error instanceof Error ? new Error(`${name}: ${error.message}`) : error
  }
}

function skip(name: string, why: string): void {
  console.log(`skipped ${name}: ${why}`)
}

function expectMatch(text: string, pattern: RegExp): void {
  if (!pattern.test(text)) throw new Error(`Expected ${pattern} in:\n${text}`)
}

/** The first block of TypeScript in the README. */
async function quickStart(): Promise<string> {
  const [, code] = /^```ts\n(.*?)^```$/ms.exec(await readFile(path.join(repository, 'README.md'), 'utf8')) ?? []
  if (code === undefined) throw new Error('README.md has no block of TypeScript.')
  return code
}

const everything = `import { archive } from 'pgtally/archive'
import { serveHttp } from 'pgtally/http'
import { jobs, milestoneJobs, scheduleMaintenance } from 'pgtally/pg-boss'
import { createRedisCache } from 'pgtally/redis'
import { createTally, defineCounters, PgtallyError } from 'pgtally'
console.log([archive, serveHttp, jobs, milestoneJobs, scheduleMaintenance, createRedisCache, createTally, defineCounters, PgtallyError].map((each) => typeof each).join())
`
const asRequire = (code: string) => code.replaceAll(/^import (\{.*\}) from ('.*')$/gm, 'const $1 = require($2)')
const allFunctions = /^(function,){8}function$/m

const workDir = await mkdtemp(path.join(tmpdir(), 'pgtally-package-'))
try {
  const tarball = path.join(workDir, `pgtally-${packageJson.version}.tgz`)
  const project = path.join(workDir, 'project')
  const inProject = (command: string, ...args: string[]) => run(project, command, ...args)
  const install = (...packages: string[]) => inProject('npm', 'install', '--prefer-offline', '--no-audit', '--no-fund', ...packages)
  const pgtally = (...args: string[]) => inProject('npx', '--no-install', 'pgtally', ...args)

  await step('build and pack', async () => {
    // What is no longer in src must not linger in dist.
    await rm(path.join(repository, 'dist'), { recursive: true, force: true })
    await run(repository, 'npm', 'run', '--silent', 'build')
    checkContents(await run(repository, 'npm', 'pack', '--json', '--ignore-scripts', '--pack-destination', workDir), repository)
    await checkPapers(repository, packageJson)
  })
  await step('publint', () => run(repository, path.join(repositoryBin, 'publint'), 'run', tarball, '--strict'))
  // It is ESM only, which every Node.js that it supports can require().
  await step('are the types wrong', () => run(repository, path.join(repositoryBin, 'attw'), tarball, '--profile', 'esm-only'))
  await step('install in an empty project', async () => {
    await mkdir(project)
    await writeFile(path.join(project, 'package.json'), JSON.stringify({ private: true, type: 'module' }))
    await install(tarball)
  })
  await step('import, without any optional dependency', async () => {
    const code = `import { createTally } from 'pgtally'\nimport { serveHttp } from 'pgtally/http'\nimport { createRedisCache } from 'pgtally/redis'\nconsole.log(typeof createTally, typeof serveHttp, typeof createRedisCache)\n`
    await writeFile(path.join(project, 'import.js'), code)
    expectMatch(await inProject('node', 'import.js'), /^function function function$/m)
  })
  const strict = ['--noEmit', '--strict', '--exactOptionalPropertyTypes', '--noUncheckedIndexedAccess', '--verbatimModuleSyntax', '--skipLibCheck', 'false', '--target', 'es2022']
  await step('types without any optional dependency', async () => {
    await writeFile(path.join(project, 'types.ts'), `import { createTally } from 'pgtally'\nimport { serveHttp } from 'pgtally/http'\nimport { createRedisCache } from 'pgtally/redis'\nexport const create: ((...args: never[]) => unknown)[] = [createTally, serveHttp, createRedisCache]\n`)
    await inProject(path.join(repositoryBin, 'tsc'), ...strict, '--module', 'nodenext', 'types.ts')
  })
  await step('integrations, with what they need', async () => {
    const needed = (['@types/node', 'hyparquet-writer', 'pg-boss'] as const).map((name) => `${name}@${packageLock.packages[`node_modules/${name}`].version}`)
    await install(...needed)
    await writeFile(path.join(project, 'integrations.js'), everything)
    await writeFile(path.join(project, 'integrations.cjs'), asRequire(everything))
    expectMatch(await inProject('node', 'integrations.js'), allFunctions)
    expectMatch(await inProject('node', 'integrations.cjs'), allFunctions)
  })
  await writeFile(path.join(project, 'quick-start.ts'), await quickStart())
  await writeFile(path.join(project, 'integrations.ts'), everything)
  await writeFile(path.join(project, 'required.cts'), `import pgtally = require('pgtally')\nexport = pgtally.createTally\n`)
  for (const version of typescripts) {
    const typescript = await findTypescript(version)
    if (typescript === undefined) {
      skip(`types under TypeScript ${version}`, 'npm cannot install it; is the registry out of reach?')
      continue
    }
    const [program = '', ...compiler] = typescript
    await step(`types under TypeScript ${version}`, async () => {
      const check = (...args: string[]) => inProject(program, ...compiler, ...strict, '--types', 'node', ...args)
      await check('--module', 'nodenext', 'quick-start.ts', 'required.cts')
      if (version !== oldestTypescript) return
      await check('--module', 'node16', 'quick-start.ts')
      await check('--module', 'esnext', '--moduleResolution', 'bundler', 'quick-start.ts')
      // With the types of pg-boss and others, which may have mistakes of their own.
      await check('--module', 'nodenext', '--skipLibCheck', 'true', 'integrations.ts')
    })
  }
  await step('pgtally --help and --version', async () => {
    expectMatch(await pgtally('--help'), /Usage: pgtally/)
    const version = (await pgtally('--version')).trim()
    if (version !== packageJson.version) throw new Error(`--version says ${version}, not ${packageJson.version}`)
  })

  await using server = await startEmbeddedServer({ settings: { fsync: 'off' } })
  const onServer = ['--database-url', server.connectionString]
  await step('pgtally install, status, uninstall', async () => {
    await pgtally('install', ...onServer)
    JSON.parse(await pgtally('status', '--json', ...onServer))
    // The page comes with all of its files.
    await writeFile(
      path.join(project, 'dashboard.js'),
      `import pg from 'pg'
      import { createTally } from 'pgtally'
      import { serveHttp } from 'pgtally/http'
      const pool = new pg.Pool({ connectionString: process.argv[2] })
      const http = await serveHttp(createTally({ pool }), [], { port: 0 })
      const pages = ['/']
      for (const page of pages) {
        const answer = await fetch(http.url + page)
        if (answer.status !== 200) throw new Error(page + ' ' + answer.status)
        const found = [...(await answer.text()).matchAll(/(?:href|src)="(dashboard[/][^"]+)"|from '[.]([/][^']+[.]js)'/g)].map(([, named, imported]) => named ? '/' + named : '/dashboard' + imported)
        pages.push(...found.filter((one) => !pages.includes(one)))
      }
      console.log(pages.length, 'files')
      await http.close()
      await pool.end()`,
    )
    expectMatch(await inProject('node', 'dashboard.js', server.connectionString), /^1\d files$/m)
    await pgtally('uninstall', '--yes', ...onServer)
  })
  const node = await findNode(oldestNode)
  if (node === undefined) {
    skip(`Node.js ${oldestNode}`, 'npm cannot install it; is the registry out of reach, or is there none for this platform?')
  } else {
    await step(`Node.js ${oldestNode}: import, require, command line`, async () => {
      expectMatch(await inProject(node, '--version'), new RegExp(`^v${oldestNode}$`, 'm'))
      expectMatch(await inProject(node, 'integrations.js'), allFunctions)
      expectMatch(await inProject(node, 'integrations.cjs'), allFunctions)
      const cli = (...args: string[]) => inProject(node, 'node_modules/pgtally/dist/cli/main.js', ...args)
      await cli('install', ...onServer)
      await cli('counter', 'create', 'views', '--key-type', 'text', ...onServer)
      JSON.parse(await cli('status', '--json', ...onServer))
      await cli('drain', ...onServer)
      await cli('uninstall', '--yes', ...onServer)
    })
  }
} finally {
  await rm(workDir, { recursive: true, force: true })
}
