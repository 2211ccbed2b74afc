// Checks the package as its users get it: built, packed and installed in an empty project.

import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'

import packageLock from '../../package-lock.json' with { type: 'json' }
import packageJson from '../../package.json' with { type: 'json' }
import { startEmbeddedServer } from '../../src/demo/embedded-server.ts'

const execFileAsync = promisify(execFile)
const repository = path.resolve(import.meta.dirname, '../..')
const repositoryBin = path.join(repository, 'node_modules/.bin')

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

function expectMatch(text: string, pattern: RegExp): void {
  if (!pattern.test(text)) throw new Error(`Expected ${pattern} in:\n${text}`)
}

const workDir = await mkdtemp(path.join(tmpdir(), 'pgtally-package-'))
try {
  const tarball = path.join(workDir, `pgtally-${packageJson.version}.tgz`)
  const project = path.join(workDir, 'project')
  const inProject = (command: string, ...args: string[]) => run(project, command, ...args)
  const pgtally = (...args: string[]) => inProject('npx', '--no-install', 'pgtally', ...args)

  await step('build and pack', async () => {
    // What is no longer in src must not linger in dist.
    await rm(path.join(repository, 'dist'), { recursive: true, force: true })
    await run(repository, 'npm', 'pack', '--pack-destination', workDir)
  })
  await step('publint', () => run(repository, path.join(repositoryBin, 'publint'), 'run', tarball, '--strict'))
  await step('are the types wrong', () =>
    run(repository, path.join(repositoryBin, 'attw'), tarball, '--profile', 'esm-only'),
  )
  await step('install in an empty project', async () => {
    await mkdir(project)
    await writeFile(path.join(project, 'package.json'), JSON.stringify({ private: true, type: 'module' }))
    await inProject('npm', 'install', '--prefer-offline', '--no-audit', '--no-fund', tarball)
  })
  await step('import', async () => {
    await writeFile(
      path.join(project, 'import.js'),
      `import { createTally } from 'pgtally'\nimport { serveHttp } from 'pgtally/http'\nimport { createRedisCache } from 'pgtally/redis'\nconsole.log(typeof createTally, typeof serveHttp, typeof createRedisCache)\n`,
    )
    expectMatch(await inProject('node', 'import.js'), /^function function function$/m)
  })
  await step('types', async () => {
    await writeFile(
      path.join(project, 'types.ts'),
      `import { createTally } from 'pgtally'\nimport { serveHttp } from 'pgtally/http'\nimport { createRedisCache } from 'pgtally/redis'\nexport const all: ((...args: never[]) => unknown)[] = [createTally, serveHttp, createRedisCache]\n`,
    )
    const options = ['--noEmit', '--strict', '--skipLibCheck', 'false', '--module', 'nodenext', '--target', 'es2024']
    await inProject(path.join(repositoryBin, 'tsc'), ...options, 'types.ts')
  })
  await step('integrations, with what they need', async () => {
    const needed = (['hyparquet-writer', 'pg-boss'] as const).map((name) => `${name}@${packageLock.packages[`node_modules/${name}`].version}`)
    await inProject('npm', 'install', '--prefer-offline', '--no-audit', '--no-fund', ...needed)
    await writeFile(
      path.join(project, 'integrations.ts'),
      `import { archive } from 'pgtally/archive'\nimport { jobs, milestoneJobs, scheduleMaintenance } from 'pgtally/pg-boss'\nconsole.log([archive, jobs, milestoneJobs, scheduleMaintenance].map((each) => typeof each).join())\n`,
    )
    const options = ['--strict', '--skipLibCheck', '--module', 'nodenext', '--target', 'es2024']
    await inProject(path.join(repositoryBin, 'tsc'), ...options, '--types', 'node', '--typeRoots', path.join(repository, 'node_modules/@types'), 'integrations.ts')
    expectMatch(await inProject('node', 'integrations.js'), /^(function,){3}function$/m)
  })
  await step('pgtally --help and --version', async () => {
    expectMatch(await pgtally('--help'), /Usage: pgtally/)
    const version = (await pgtally('--version')).trim()
    if (version !== packageJson.version) throw new Error(`--version says ${version}, not ${packageJson.version}`)
  })
  await step('pgtally install, status, uninstall', async () => {
    await using server = await startEmbeddedServer({ settings: { fsync: 'off' } })
    const onServer = ['--database-url', server.connectionString]
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
} finally {
  await rm(workDir, { recursive: true, force: true })
}
