// Writes what the tests in test/upgrade.test.ts compare with.
//
// npm run schema:dump      schema.txt, after any change of sql/ that changes what is installed; look at the difference before you commit it
// npm run schema:snapshot  version-N.sql, with the release of version N; frozen from then on

import { writeFile } from 'node:fs/promises'

import pg from 'pg'

import { startTestServer } from '../support/server.ts'
import { currentSnapshot, describeInstallation } from './installation.ts'

async function write(name: string, text: string): Promise<void> {
  await writeFile(new URL(name, import.meta.url), text)
  console.log(`Wrote test/schema/${name}.`)
}

if (process.argv[2] === 'snapshot') {
  const { name, text } = await currentSnapshot()
  await write(name, text)
} else {
  await using server = await startTestServer()
  const pool = new pg.Pool({ connectionString: server.connectionString })
  try {
    await write('schema.txt', await describeInstallation(pool))
  } finally {
    await pool.end()
  }
}
