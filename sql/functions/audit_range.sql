-- audit_range(counter_name, after_key, max_keys, against): compares the source with stored + carried + pending for about max_keys keys.
--
-- Goes through the keys in order, beginning after after_key (NULL: with the first). last_key is where the next call begins, and NULL
-- when this one reached the end. against: hold the counts against that column of the target instead of the source,
-- such as one that the application keeps itself. checked_keys, drifting_keys, drifting: see measure().
--
-- Writers and workers go on meanwhile; neither they nor rotate() can make it see a drift that is none. Each call reads in one snapshot
-- and keeps locks (ACCESS SHARE) to the end of the transaction, so use one transaction for each.
--
-- Errors: TL001 when there is no such counter; TL003, TL009 as require_against(); TL003 when max_keys is below 1; TL004, TL005 as measure().
create or replace function pgtally.audit_range(
    counter_name text, after_key text default null, max_keys integer default 10000, against name default null,
    out last_key text, out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.require_against(counter, against);
    select m.* into last_key, checked_keys, drifting_keys, drifting
    from pgtally.measure(counter, null, after_key, max_keys, against, false) m;
end
$$;
