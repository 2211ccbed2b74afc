import { execFile } from 'node:child_process'
import path from 'node:path'
import { promisify } from 'node:util'

const main = path.resolve(import.meta.dirname, '../../src/cli/main.ts')

const head = `<!-- Written by \`npm run docs\` from the commands' own help. -->

# Command line

The database is \`--database-url\`, else \`DATABASE_URL\`, else the usual \`PG*\` variables; the schema is \`--schema\` (\`pgtally\`). \`--json\` is there wherever
there is output to read by program. Exit codes: 0 success, 1 a negative answer or an error, 2 wrong usage. In a clone, without a build: \`npm run -s pgtally -- status\`.

On SIGTERM or SIGINT \`worker\` finishes the batch in hand and exits with 0; a second signal ends it at once, which loses nothing either.
`

/** What \`--help\` says of every command. */
export async function commandLineReference(): Promise<Map<string, string>> {
  const sections = await describe([])
  return new Map([['docs/command-line.md', `${head}\n${sections.join('\n\n')}\n`]])
}

async function describe(command: readonly string[]): Promise<string[]> {
  const { stdout } = await promisify(execFile)(process.execPath, [main, ...command, '--help'], { env: { ...process.env, COLUMNS: '120' } })
  const [, list = ''] = /^Commands:\n((?:^ .*\n?)+)/m.exec(stdout) ?? []
  const names = [...list.matchAll(/^ {2}([a-z][\w-]*)/gm)].map(([, name = '']) => name).filter((name) => name !== 'help')
  const title = `${command.length > 1 ? '###' : '##'} pgtally ${command.join(' ')}`.trimEnd()
  const section = `${title}\n\n<!-- not run: help that was written by the command itself -->\n\`\`\`\n${stdout.trimEnd()}\n\`\`\``
  const below = await Promise.all(names.map((name) => describe([...command, name])))
  return [section, ...below.flat()]
}
