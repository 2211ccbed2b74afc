import pg from 'pg'
import type { TestProject } from 'vitest/node'

import { startTestServer, testSettings } from './server.ts'

declare module 'vitest' {
  export interface ProvidedContext {
    /** Of a superuser who may create databases. */
    serverUrl: string
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const server = await testServer()
  console.log(`Testing against ${await version(server.connectionString)}`)
  project.provide('serverUrl', server.connectionString)
  return server.stop
}

async function testServer(): Promise<{ connectionString: string; stop: () => Promise<void> }> {
  const url = process.env['PGTALLY_TEST_DATABASE_URL']
  if (url) return { connectionString: url, stop: async () => {} }
  if (process.env['PGTALLY_TEST_DOCKER'] === '1') return startContainer()
  return startTestServer()
}

async function startContainer() {
  const { PostgreSqlContainer } = await import('@testcontainers/postgresql')
  const command = ['postgres', ...Object.entries(testSettings).flatMap(([name, value]) => ['-c', `${name}=${value}`])]
  const container = await new PostgreSqlContainer(process.env['PGTALLY_TEST_DOCKER_IMAGE'] ?? 'postgres:18')
    .withCommand(command)
    .start()
  return {
    connectionString: container.getConnectionUri(),
    stop: async () => {
      await container.stop()
    },
  }
}

async function version(connectionString: string): Promise<string> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    return (await client.query<{ version: string }>('select version()')).rows[0]?.version ?? 'an unknown server'
  } finally {
    await client.end()
  }
}
