-- reset_keys(counter_name, keys): as reset_range() for these keys. Returns how many were not 0.
--
-- Errors: as reset_range(); 22P02 when a key is not of the queue's type.
create or replace function pgtally.reset_keys(counter_name text, keys text[]) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
begin
    perform pgtally.require_source_rows(counter, false);
    return (select m.drifting_keys from pgtally.measure(counter, coalesce(keys, '{}'), null, null, null, true) m);
end
$$;
