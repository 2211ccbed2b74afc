import { execFile } from 'node:child_process'
import path from 'node:path'
import { promisify } from 'node:util'

const printHelp = path.join(import.meta.dirname, 'print-help.ts')

const head = `<!-- Written by \`npm run docs\` from the commands' own help. -->

# Command line

The database is \`--database-url\`, else \`DATABASE_URL\`, else the usual \`PG*\` variables; the schema is \`--schema\` (\`pgtally\`). \`--json\` is there wherever
there is output to read by program. Exit codes: 0 success, 1 a negative answer or an error, 2 wrong usage. In a clone, without a build: \`npm run -s pgtally -- status\`.

On SIGTERM or SIGINT \`worker\` finishes the batch in hand and exits with 0; a second signal ends it at once, which loses nothing either.
`

/** What the help of every command says. */
export async function commandLineReference(): Promise<Map<string, string>> {
  const { stdout } = await promisify(execFile)(process.execPath, [printHelp])
  const sections = Object.entries(JSON.parse(stdout) as Record<string, string>).map(([command, help]) => {
    const title = `${command.includes(' ') ? '###' : '##'} pgtally ${command}`.trimEnd()
    return `${title}\n\n<!-- not run: help that was written by the command itself -->\n\`\`\`\n${help}\n\`\`\``
  })
  return new Map([['docs/command-line.md', `${head}\n${sections.join('\n\n')}\n`]])
}
