// Prints the help of every command as JSON, by its words: { "": …, "worker": …, "counter create": … }. In a process of its own, whose output is no terminal: so
// that lines are broken at the same place everywhere.

const help: Record<string, string> = {}
const write = process.stdout.write.bind(process.stdout)

async function collect(command: readonly string[]): Promise<void> {
  let printed = ''
  process.stdout.write = (text: string | Uint8Array) => ((printed += String(text)), true)
  process.argv = [process.execPath, 'pgtally', ...command, '--help']
  // What runs is the module itself; each time it has another name, so that it is evaluated again.
  await import(`../../src/cli/main.ts?${command.join('-')}`)
  process.stdout.write = write
  help[command.join(' ')] = printed.trimEnd()

  const [, list = ''] = /^Commands:\n((?:^ .*\n?)+)/m.exec(printed) ?? []
  for (const [, name = ''] of list.matchAll(/^ {2}([a-z][\w-]*)/gm)) {
    if (name !== 'help') await collect([...command, name])
  }
}

await collect([])
write(JSON.stringify(help))
