import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'

import type pg from 'pg'

import { createTally } from '../../src/index.ts'
import { asTransaction, installScript, knownVersion, readSqlFiles } from '../../src/install/script.ts'
import { dumpSchema } from '../support/schema-dump.ts'

/** Between the installation of a snapshot and what was done with it. */
export const snapshotSeparator = '\n-- What was done with it.\n\n'

/** The name and the text of the file that recreates a database as the version of today leaves it, with something under way. */
export async function currentSnapshot(): Promise<{ name: string; text: string }> {
  const scenario = await readFile(new URL('scenario.sql', import.meta.url), 'utf8')
  const script = asTransaction(installScript('pgtally', await readSqlFiles('pgtally'), 0))
  return { name: `version-${await knownVersion()}.sql`, text: `${script}${snapshotSeparator}${scenario}` }
}

/** The dump of a fresh installation with two counters, and with rights for each kind of role. */
export async function describeInstallation(pool: pg.Pool): Promise<string> {
  const tally = createTally({ pool })
  await tally.install()
  await pool.query('create table likes (post_id bigint, user_id bigint, weight integer)')
  await tally.createCounter('post_likes', { source: { table: 'likes', key: 'post_id', where: 'weight > 0', data: ['user_id'] }, milestones: [100] })
  await tally.createCounter('page_views', { keyType: 'text' })
  const kinds = ['writer', 'reader', 'worker'] as const
  const roles = kinds.map((kind) => `pgtally_test_${kind}_${randomBytes(6).toString('hex')}`)
  try {
    for (const role of roles) await pool.query(`create role ${role}`)
    const [writer = '', reader = '', worker = ''] = roles
    await tally.grant({ writers: [writer], readers: [reader], workers: [worker] })
    return await dumpSchema(pool, { roles: Object.fromEntries(roles.map((role, index) => [role, kinds[index] ?? ''])) })
  } finally {
    for (const role of roles) await pool.query(`drop owned by ${role}; drop role ${role}`)
  }
}
