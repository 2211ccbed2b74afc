-- audit(counter_name, against): every drifting key of a counter with its counts; no row when all is well. part: NULL for the count, or which time bucket or score it is, or what is to come into scores at which time, or `ranking`.
--
-- Range by range, each in a snapshot of its own, but in one transaction, which holds back vacuum for as long as it takes. For a large
-- table call audit_range() in transactions of its own, as the command `pgtally audit` does.
--
-- Errors: as audit_range().
create or replace function pgtally.audit(counter_name text, against name default null)
returns table (key text, part text, source numeric, stored numeric, carried numeric, pending numeric)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    part record;
    after_key text;
begin
    perform pgtally.require_against(counter, against);
    loop
        -- Not by audit_range(), which lists the first thousand of a range only.
        select * into part from pgtally.measure(counter, null, after_key, 10000, against, false, null);
        return query
        select d.* from jsonb_to_recordset(part.drifting) d(key text, part text, source numeric, stored numeric, carried numeric, pending numeric);
        exit when part.last_key is null;
        after_key := part.last_key;
    end loop;
end
$$;
