import { bareStatements } from './method.ts'
import type { Method } from './method.ts'

/** What a statement trigger in PL/pgSQL costs by itself. */
export const noopTrigger: Method = {
  name: 'a trigger that does nothing',
  async open({ pool }, tables) {
    await pool.query(`
      create function ${tables.schema}.do_nothing() returns trigger language plpgsql as 'begin return null; end';
      create trigger do_nothing after insert on ${tables.likes} referencing new table as new_rows for each statement execute function ${tables.schema}.do_nothing()`)
    return bareStatements(tables)
  },
}
