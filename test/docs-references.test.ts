import { globSync } from 'node:fs'
import { readFile } from 'node:fs/promises'

import { expect, test } from 'vitest'

import { apiDirectory, apiReference } from '../scripts/docs/api-reference.ts'
import { commandLineReference } from '../scripts/docs/command-line-reference.ts'
import { sqlReference } from '../scripts/docs/sql-reference.ts'

const references = [
  ['of SQL', sqlReference],
  ['of the command line', commandLineReference],
  ['of the API', apiReference],
] as const

test.for(references)('the reference %s is up to date; if not, run `npm run docs`', async ([, generate]) => {
  const pages = await generate()
  for (const [file, text] of pages) expect(await readFile(file, 'utf8')).toBe(text)
  const gone = globSync(`${apiDirectory}/*`).filter((file) => generate === apiReference && !pages.has(file))
  expect(gone).toEqual([])
})
