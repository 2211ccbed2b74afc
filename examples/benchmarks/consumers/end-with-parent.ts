// Imported first by every process that a benchmark starts: where the benchmark is gone, nobody else would stop it.
const end = () => process.exit(1)
process.stdin.on('close', end).on('error', end).resume()
// By itself it keeps no process going.
process.stdin.unref()
