import { globSync } from 'node:fs'
import { readFile } from 'node:fs/promises'

import { expect, test } from 'vitest'

import { apiDirectory } from '../scripts/docs/api-reference.ts'
import { generateReferences } from '../scripts/docs/references.ts'

test('the references in docs/ are those of the sources', { timeout: 60_000 }, async () => {
  const references = await generateReferences()
  const outdated: string[] = []
  for (const [file, text] of references) {
    if ((await readFile(file, 'utf8').catch(() => '')) !== text) outdated.push(file)
  }
  expect(outdated, 'these are not up to date; run `npm run docs` and commit what it writes').toEqual([])
  const gone = globSync(`${apiDirectory}/*.md`).filter((file) => !references.has(file))
  expect(gone, 'these are of exports that are gone').toEqual([])
})
