import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'

import { expect, test } from 'vitest'

import { waitFor } from './support/database.ts'

function start() {
  const child = spawn(process.execPath, ['examples/two-regions.ts'], { stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()))
  const errors = text(child.stderr)
  const ended = once(child, 'close').then(async ([exitCode]) => ({ exitCode: exitCode as number, stdout, stderr: await errors }))
  return { child, ended, printed: () => stdout }
}

test('two regions that forward to each other come to the same counts, also when one crashes', async () => {
  const { exitCode, stdout, stderr } = await start().ended
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  expect(stdout).toContain('Both regions have the same counts')
  const counts = (name: string) => stdout.match(new RegExp(`^  ${name}: (.*)$`, 'gm'))?.at(-1)?.slice(`  ${name}: `.length).trim().split(/ +/)
  expect(counts('eu')).toEqual(counts('us'))
  expect(counts('eu')).toEqual(counts('rows'))
  expect(counts('rows')?.map(Number).every((count) => count > 0)).toBe(true)
}, 120_000)

test('the example ends on Ctrl-C', async () => {
  const { child, ended, printed } = start()
  await waitFor(async () => printed().includes('Likes and unlikes'), { what: 'the start' })
  child.kill('SIGINT')
  const { exitCode, stdout } = await ended
  expect(stdout).toContain('Interrupted (SIGINT); everything is stopped.')
  expect(exitCode).toBe(130)
}, 120_000)
