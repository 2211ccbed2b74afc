// What `npm run demo` runs: the demo of the command line, or with --stack-exchange the replay of real votes.

const [node = '', script = '', ...given] = process.argv
const option = '--stack-exchange'
const at = given.findIndex((argument) => argument === option || argument.startsWith(`${option}=`))

if (at === -1) {
  process.argv = [node, script, 'demo', ...given]
  await import('../src/cli/main.ts')
  if (given.includes('--help') || given.includes('-h')) {
    process.stdout.write(`
With real votes:
  npm run demo -- ${option} <directory>         replay a site of the Stack Exchange data dump (its Posts.xml and Votes.xml)
  npm run demo -- ${option} <directory> --help  its options
`)
  }
} else {
  const directory = given[at]?.split('=').slice(1).join('=') ?? ''
  process.argv = [node, script, ...(directory === '' ? [] : [directory]), ...given.toSpliced(at, 1)]
  await import('./stack-exchange/main.ts')
}
