-- reconcile_keys(counter_name, keys): compares and corrects these keys. An unfinished reconciliation stays where it is.
--
-- checked_keys, drifting_keys, drifting: see measure(); each of the drifting keys was corrected.
--
-- Errors: as audit_keys().
create or replace function pgtally.reconcile_keys(
    counter_name text, keys text[],
    out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
begin
    perform pgtally.require_source_rows(counter, true);
    select m.checked_keys, m.drifting_keys, m.drifting into checked_keys, drifting_keys, drifting from pgtally.measure(counter, coalesce(keys, '{}'), null, null, null, true) m;
end
$$;
