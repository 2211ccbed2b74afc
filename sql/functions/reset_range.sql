-- reset_range(counter_name, after_key, max_keys): sets the counts of about max_keys keys back to 0, for a counter without a source.
--
-- What is stored, carried and pending in one snapshot is taken back by a delta of that size; what is added later counts. Goes through
-- the keys in order, as audit_range(). last_key is where the next call begins, and NULL at the end.
--
-- Errors: TL001 when there is no such counter; TL004, TL005 as measure(); TL009 when it has a source.
create or replace function pgtally.reset_range(
    counter_name text, after_key text default null, max_keys integer default 10000,
    out last_key text, out checked_keys bigint, out drifting_keys bigint
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
begin
    perform pgtally.require_source_rows(counter, false);
    select m.last_key, m.checked_keys, m.drifting_keys into last_key, checked_keys, drifting_keys
    from pgtally.measure(counter, null, after_key, max_keys, null, true) m;
end
$$;
