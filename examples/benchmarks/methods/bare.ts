import { bareStatements } from './method.ts'
import type { Method } from './method.ts'

/** The limit: the row and no count. Reads would have to `COUNT(*)`. */
export const bare: Method = {
  name: 'bare INSERT',
  open: async (_bench, tables) => bareStatements(tables),
}
