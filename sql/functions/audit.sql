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
    -- No more keys than measure() lists.
    max_keys constant integer := 1000;
    part record;
    after_key text;
begin
    loop
        select * into part from pgtally.audit_range(counter_name, after_key, max_keys, against);
        return query
        select d.* from jsonb_to_recordset(part.drifting) d(key text, source bigint, stored bigint, carried bigint, pending bigint);
        exit when part.last_key is null;
        after_key := part.last_key;
    end loop;
end
$$;
