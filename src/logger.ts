/** What the worker has to say, in the form of pino's methods. */
export interface Logger {
  debug(details: object, message: string): void
  info(details: object, message: string): void
  warn(details: object, message: string): void
}

export const silent: Logger = { debug() {}, info() {}, warn() {} }
