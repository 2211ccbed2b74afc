/** What a worker or consumer of this process has done just now. */
export type Activity =
  /** A worker has looked what is due, and why it could not; the next look is in so many ms. */
  | { kind: 'look'; error: unknown; nextInMs: number }
  /** A worker has applied a batch. */
  | { kind: 'apply'; counter: string; events: number; ms: number }
  | { kind: 'apply failed'; counter: string }
  /** A worker has emptied slots. */
  | { kind: 'empty slots'; queue: string; slots: number }
  /** A consumer has handled a batch. */
  | { kind: 'handle'; queue: string; consumer: string; ms: number }
  | { kind: 'handle failed'; queue: string; consumer: string }

/** Is told of each activity as it happens, and neither throws nor waits. */
export type Observer = (activity: Activity) => void
