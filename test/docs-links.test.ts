import { globSync } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import path from 'node:path'

import { expect, test } from 'vitest'

const documents = [...globSync('*.md'), ...globSync('{docs,examples}/**/*.md')]

/** As GitHub makes them. */
function anchors(markdown: string): Set<string> {
  const seen = new Map<string, number>()
  const headings = markdown.replaceAll(/^```.*?^```/gms, '').matchAll(/^#{1,6} (.+)$/gm)
  const all = new Set([...markdown.matchAll(/<a id="([^"]+)"/g)].map(([, id = '']) => id))
  for (const [, heading = ''] of headings) {
    const text = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase()
    const slug = text.replaceAll(/[^\p{L}\p{N}\p{M} _-]/gu, '').replaceAll(' ', '-')
    const count = seen.get(slug) ?? 0
    seen.set(slug, count + 1)
    all.add(count === 0 ? slug : `${slug}-${count}`)
  }
  return all
}

async function isBroken(document: string, link: string): Promise<boolean> {
  const [file = '', anchor] = decodeURI(link).split('#')
  const target = file === '' ? document : path.join(path.dirname(document), file)
  if ((await stat(target).catch(() => undefined)) === undefined) return true
  return anchor !== undefined && target.endsWith('.md') && !anchors(await readFile(target, 'utf8')).has(anchor)
}

test('links between the documents lead somewhere', async () => {
  const broken: string[] = []
  for (const document of documents) {
    const text = (await readFile(document, 'utf8')).replaceAll(/^ *```.*?^ *```/gms, '').replaceAll(/`[^`\n]*`/g, (code) => code.replaceAll(/[[\]()]/g, ' '))
    for (const [, link = ''] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (!/^[a-z]+:/.test(link) && (await isBroken(document, link))) broken.push(`${document}: ${link}`)
    }
  }
  expect(broken).toEqual([])
})
