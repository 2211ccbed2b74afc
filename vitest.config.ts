import path from 'node:path'

import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    // They share one PostgreSQL server, and wait more than they work.
    maxWorkers: 4,
    maxConcurrency: 3,
    // Many tests start commands, which then need not be compiled each time.
    env: { NODE_COMPILE_CACHE: path.resolve('node_modules/.cache/pgtally/compile') },
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
})
