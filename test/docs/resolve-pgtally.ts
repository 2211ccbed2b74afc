// For `node --import`: lets code in the documents, and modules of `pgtally worker --module`, import pgtally by its name without a build.

import { registerHooks } from 'node:module'

import packageJson from '../../package.json' with { type: 'json' }

const exported: Record<string, string | { default: string }> = packageJson.exports

registerHooks({
  resolve(specifier, context, nextResolve) {
    const to = /^pgtally(?:\/|$)/.test(specifier) ? exported[specifier.replace('pgtally', '.')] : undefined
    if (typeof to !== 'object') return nextResolve(specifier, context)
    const source = to.default.replace('./dist/', '../../src/').replace(/js$/, 'ts')
    return { url: new URL(source, import.meta.url).href, shortCircuit: true }
  },
})
