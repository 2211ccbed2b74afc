import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import pg from 'pg'
import { expect, vi } from 'vitest'

import type { Diagnosis, Finding, FindingCode, Tally } from '../../src/index.ts'
import { checks } from '../../src/install/doctor/checks.ts'
import { examine } from '../../src/install/doctor/doctor.ts'
import { defaultLimits, type Limits } from '../../src/install/doctor/limits.ts'
import { waitFor, type TestDatabase } from './database.ts'

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))

/** What the doctor says, with other limits where waiting for those of production would take too long. */
export function diagnose(db: TestDatabase, limits: Partial<Limits> = {}, schema = 'pgtally'): Promise<Diagnosis> {
  return examine(db.pool, schema, { limits: { ...defaultLimits, ...limits } })
}

/** Whether it depends on the day and the server that the tests run on: such a version comes to its end. */
export const ofServer = ({ code }: Finding): boolean => code.startsWith('SERVER_')

/** Errors and warnings, but for those of the server. */
export const troubles = ({ findings }: Diagnosis): Finding[] => findings.filter((finding) => finding.level !== 'info' && !ofServer(finding))

export interface Ailment {
  code: FindingCode
  /** The name of what it is about; undefined where there is one only. */
  name?: string
  limits?: Partial<Limits>
  schema?: string
}

export async function find(db: TestDatabase, { code, name, limits, schema = 'pgtally' }: Ailment): Promise<Finding | undefined> {
  const chosen = checks.filter(({ codes }) => code in codes)
  const { findings, notChecked } = await examine(db.pool, schema, { limits: { ...defaultLimits, ...limits }, chosen })
  expect(notChecked).toEqual([])
  return findings.find((finding) => finding.code === code && (name === undefined || finding.subject.name === name))
}

/** The finding, as soon as it is there: statistics take a moment. */
export function findSoon(db: TestDatabase, ailment: Ailment): Promise<Finding> {
  return waitFor(() => find(db, ailment), { what: `the finding ${ailment.code} of ${ailment.name ?? 'anything'}` })
}

/**
 * Does what the finding's remedy says, as a person would who pastes it: SQL in a session of the database, commands through a shell. Then the finding must be gone.
 *
 * @param only of remedies that are alternatives, the one that is chosen
 */
export async function cure(db: TestDatabase, ailment: Ailment, only: RegExp = /./): Promise<Finding> {
  const finding = await findSoon(db, ailment)
  const done = await follow(db, finding, only)
  await waitFor(async () => (await find(db, ailment)) === undefined, { what: `${ailment.code} to be gone after ${done.join(' ')}` })
  return finding
}

/** Does what the remedy says, without a look at what comes of it. */
export async function follow(db: TestDatabase, finding: Finding, only: RegExp): Promise<string[]> {
  const done: string[] = []
  for (const remedy of finding.remedy) {
    if ('sql' in remedy && only.test(remedy.sql)) done.push(await pasteSql(db, remedy.sql))
    if ('command' in remedy && only.test(remedy.command)) done.push(await pasteCommand(db, remedy.command))
  }
  expect(done, `what is done about ${finding.code}`).not.toEqual([])
  return done
}

/** As psql does: one statement after the other, each for itself. */
async function pasteSql(db: TestDatabase, sql: string): Promise<string> {
  const client = new pg.Client({ connectionString: db.connectionString })
  await client.connect()
  try {
    for (const statement of sql.split(/;(?:\n|$)/)) if (statement.trim() !== '') await client.query(statement)
  } finally {
    await client.end()
  }
  return sql
}

/** The shell takes it apart; it runs in this process, which takes no time to start. */
async function pasteCommand(db: TestDatabase, command: string): Promise<string> {
  const { stdout } = await promisify(execFile)('sh', ['-c', `pgtally() { printf '%s\\0' "$@"; }; ${command}`])
  const { code, output } = await pgtally(db.connectionString, ...stdout.split('\0').slice(0, -1))
  expect({ command, code, output }).toMatchObject({ code: 0 })
  return command
}

/** The command line in this process. One at a time. */
export async function pgtally(connectionString: string, ...args: string[]): Promise<{ code: unknown; output: string }> {
  let output = ''
  const spies = (['stdout', 'stderr'] as const).map((stream) => vi.spyOn(process[stream], 'write').mockImplementation((text) => ((output += String(text)), true)))
  const { argv } = process
  process.argv = [process.execPath, main, ...args]
  vi.stubEnv('DATABASE_URL', connectionString)
  try {
    // What runs is the module itself; each time it has another name, so that it is evaluated again.
    await import(/* @vite-ignore */ `../../src/cli/main.ts?${randomUUID()}`)
    return { code: process.exitCode ?? 0, output }
  } finally {
    process.argv = argv
    process.exitCode = undefined
    vi.unstubAllEnvs()
    for (const spy of spies) spy.mockRestore()
  }
}

/** A counter with a partitioned source, of which one table that could be a partition is none yet. */
export async function createPartitioned(db: TestDatabase, tally: Tally, name: string): Promise<void> {
  await db.pool.query(`
    create table ${name}_posts (id bigint primary key, like_count bigint not null default 0);
    insert into ${name}_posts select generate_series(1, 5);
    create table ${name}_likes (post_id bigint, month int) partition by list (month);
    create table ${name}_m1 partition of ${name}_likes for values in (1);
    create table ${name}_m2 (post_id bigint, month int)`)
  await tally.createCounter(name, { source: { table: `${name}_likes`, key: 'post_id' }, target: { table: `${name}_posts`, key: 'id', column: 'like_count' } })
}
