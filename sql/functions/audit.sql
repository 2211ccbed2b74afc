-- audit(counter_name, against): every drifting key of a counter with its counts; no row when all is well.
--
-- Range by range, each in a snapshot of its own, but in one transaction, which holds back vacuum as any long statement does. For a large table
-- call audit_range() in transactions of its own, as the command `pgtally audit` does.
--
-- Errors: as audit_range().
create or replace function pgtally.audit(counter_name text, against name default null)
returns table (key text, source bigint, stored bigint, carried bigint, pending bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    after_key text;
    last_key text;
begin
    perform pgtally.require_against(counter, against);
    loop
        perform pgtally.lock_measured(counter);
        last_key := pgtally.next_range(counter, after_key, 10000);
        -- Not by audit_range(), which lists the first thousand of a range only.
        return query
        select d.*
        from pgtally.measure(counter, null, after_key, last_key, against, false, null) m,
            lateral jsonb_to_recordset(m.drifting) d(key text, source bigint, stored bigint, carried bigint, pending bigint);
        exit when last_key is null;
        after_key := last_key;
    end loop;
end
$$;
