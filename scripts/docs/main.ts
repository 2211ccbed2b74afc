// Writes the references below docs/ that are made from the sources: npm run docs

import { mkdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'

import { apiDirectory } from './api-reference.ts'
import { generateReferences } from './references.ts'

const references = await generateReferences()
await rm(apiDirectory, { recursive: true, force: true })
for (const [file, text] of references) {
  await mkdir(path.dirname(file), { recursive: true })
  await writeFile(file, text)
}
process.stdout.write(`${[...references.keys()].join('\n')}\n`)
