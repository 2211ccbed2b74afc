-- audit_keys(counter_name, keys, against): as audit_range() for these keys.
--
-- Errors: as audit_range(); 22P02 when a key is not of the queue's type.
create or replace function pgtally.audit_keys(
    counter_name text, keys text[], against name default null,
    out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.require_against(counter, against);
    select m.checked_keys, m.drifting_keys, m.drifting into checked_keys, drifting_keys, drifting from pgtally.measure(counter, coalesce(keys, '{}'), null, null, against, false) m;
end
$$;
