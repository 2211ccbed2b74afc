import type { Logger } from '../../src/index.ts'
import { waitFor } from './database.ts'

export interface Recorder extends Logger {
  readonly messages: string[]
}

/** Collects what a worker or consumer says, but for what is for debugging. */
export function recorder(): Recorder {
  const messages: string[] = []
  const note = (details: object, message: string) => void messages.push(`${message} ${JSON.stringify(details)}`)
  return { messages, debug() {}, info: note, warn: note }
}

export async function said({ messages }: Recorder, what: string): Promise<void> {
  await waitFor(async () => messages.some((message) => message.includes(what)), { what: `"${what}"` })
}
