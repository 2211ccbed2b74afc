/** Why a demo ended early. */
export class Interruption extends Error {
  override readonly name = 'Interruption'
  /** As a shell reports it. */
  readonly exitCode: number

  constructor(reason: keyof typeof exitCodes) {
    super(`Interrupted (${reason})`)
    this.exitCode = exitCodes[reason]
  }
}

const exitCodes = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129, EPIPE: 141 } as const
const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
// npm passes on a Ctrl-C that its child had from the terminal already: that is one, not two.
const sameSignalMs = 500

/**
 * Runs `work` with a signal that a first Ctrl-C aborts, so that it can clean up; a second one ends the process. The end
 * of whoever reads the output counts as one, too: a write nobody takes would otherwise end the process by itself.
 */
export async function withInterruption<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController()
  let interruptedAt: number | undefined
  const onSignal = (signal: (typeof signals)[number]) => {
    if (interruptedAt !== undefined && performance.now() - interruptedAt > sameSignalMs) process.exit(exitCodes[signal])
    interruptedAt ??= performance.now()
    controller.abort(new Interruption(signal))
  }
  const onBrokenOutput = () => controller.abort(new Interruption('EPIPE'))
  for (const signal of signals) process.on(signal, onSignal)
  process.stdout.on('error', onBrokenOutput)
  try {
    return await work(controller.signal)
  } finally {
    // The output's listener stays: what was written last may fail only now.
    for (const signal of signals) process.off(signal, onSignal)
  }
}
