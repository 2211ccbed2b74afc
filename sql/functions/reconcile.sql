-- reconcile(counter_name): reconciles the whole counter, and commits after each range of keys.
--
-- For psql, or any client that is not in a transaction: CALL pgtally.reconcile('post_likes'). Goes on where an unfinished one is.
--
-- Errors: as begin_reconciliation() and reconcile_range(); 2D000 in a transaction block.
create or replace procedure pgtally.reconcile(counter_name text)
-- No SET search_path, with which it could not commit; so all names are written out.
language plpgsql as $$
declare
    id pg_catalog.int8;
    last_key pg_catalog.text;
begin
    id := pgtally.begin_reconciliation(counter_name);
    loop
        commit;
        select r.last_key into last_key from pgtally.reconcile_range(id) r;
        exit when last_key is null;
    end loop;
end
$$;
