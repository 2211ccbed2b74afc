import { bareStatements } from './method.ts'
import type { Method } from './method.ts'

interface Form {
  name: string
  /** The trigger's body, with `events` for the table. */
  body: string
  /** Row triggers see `new`, statement triggers `new_rows`. */
  forEach: 'row' | 'statement'
  /** Default: `security definer` without SET, as pgtally's are. */
  options?: string
  /** What a fresh count and a batch need. */
  index?: false
  /** In one of three tables by the time of the clock. */
  slots?: true
}

const one = 'insert into events (key, delta)'
const sum = `${one} select post_id, count(*) from new_rows group by 1`
const askWithin = `${one} select post_id, 1 from new_rows where not exists (select from new_rows offset 1); if not found then ${sum}; end if`

const forms: Form[] = [
  { name: 'row trigger, event table without an index', forEach: 'row', body: `${one} values (new.post_id, 1)`, index: false },
  { name: 'row trigger', forEach: 'row', body: `${one} values (new.post_id, 1)` },
  { name: 'row trigger, slots', forEach: 'row', body: `${one} values (new.post_id, 1)`, slots: true },
  { name: 'statement trigger, never sums', forEach: 'statement', body: `${one} select post_id, 1 from new_rows` },
  { name: 'statement trigger, always sums', forEach: 'statement', body: sum },
  { name: 'statement trigger, asks first', forEach: 'statement', body: `if exists (select from new_rows offset 1) then ${sum}; else ${one} select post_id, 1 from new_rows; end if` },
  { name: 'statement trigger, asks within', forEach: 'statement', body: askWithin },
  { name: 'statement trigger, asks within, slots', forEach: 'statement', body: askWithin, slots: true },
  { name: 'the same without SECURITY DEFINER', forEach: 'statement', body: askWithin, slots: true, options: '' },
  { name: 'the same with SET search_path', forEach: 'statement', body: askWithin, slots: true, options: 'security definer set search_path = pg_catalog, pg_temp' },
]

/** Ways to write the trigger, made up for comparison; the last but two is what pgtally generates. */
export const triggerForms: readonly Method[] = forms.map(({ name, body, forEach, options = 'security definer', index = true, slots }) => ({
  name,
  async open({ pool }, tables) {
    const events = `${tables.schema}.events`
    await pool.query(`
      create table ${events} (
        txid xid8 not null default pg_current_xact_id(), at timestamptz not null default clock_timestamp(), delta bigint not null, key bigint not null,
        slot smallint not null default pgtally.slot_at(clock_timestamp(), '5 minutes'), data jsonb) ${slots ? 'partition by list (slot)' : ''}`)
    for (const slot of slots ? [0, 1, 2] : []) await pool.query(`create table ${events}_${slot} partition of ${events} for values in (${slot})`)
    if (index) await pool.query(`create index on ${events} (txid, key)`)
    await pool.query(`
      create function ${tables.schema}.emit() returns trigger language plpgsql ${options} as $$begin ${body.replaceAll('into events', `into ${events}`)}; return null; end$$;
      create trigger emit after insert on ${tables.likes} ${forEach === 'statement' ? 'referencing new table as new_rows' : ''} for each ${forEach} execute function ${tables.schema}.emit()`)
    return { ...bareStatements(tables), reset: async () => void (await pool.query(`truncate ${events}`)) }
  },
}))
