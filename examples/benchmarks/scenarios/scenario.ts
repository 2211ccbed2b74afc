import type { Bench } from '../bench.ts'
import type { Result } from '../results.ts'

export interface Scenario {
  readonly name: string
  /** One line for `--help`. */
  readonly description: string
  /** In a database of its own. */
  run(bench: Bench): Promise<Result[]>
}
