// Writes what the tests in test/upgrade.test.ts compare with.
//
// npm run schema:dump      schema.txt, after any change of sql/ that changes what is installed; look at the difference before you commit it
// npm run schema:snapshot  version-N.sql, with the release of version N; frozen from then on

import { readFile, writeFile } from 'node:fs/promises'

import pg from 'pg'

import { asTransaction, installScript, readSqlFiles } from '../../src/install/script.ts'
import { startTestServer } from '../support/server.ts'
import { describeInstallation, snapshotSeparator } from './installation.ts'

const scenario = await readFile(new URL('scenario.sql', import.meta.url), 'utf8')
const files = await readSqlFiles('pgtally')

async function write(name: string, text: string): Promise<void> {
  await writeFile(new URL(name, import.meta.url), text)
  console.log(`Wrote test/schema/${name}.`)
}

if (process.argv[2] === 'snapshot') {
  await write(`version-${files.migrations.length}.sql`, `${asTransaction(installScript('pgtally', files, 0))}${snapshotSeparator}${scenario}`)
} else {
  await using server = await startTestServer()
  const pool = new pg.Pool({ connectionString: server.connectionString })
  try {
    await write('schema.txt', await describeInstallation(pool))
  } finally {
    await pool.end()
  }
}
