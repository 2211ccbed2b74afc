-- lock_batch(batch_id, claim): keeps a claimed batch for the caller's transaction, however long that takes.
--
-- Errors: TL011 when it is not the caller's (any more): it was taken over, or finished.
create or replace function pgtally.lock_batch(batch_id bigint, claim integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    perform from pgtally.batch b where b.batch_id = lock_batch.batch_id and b.claim = lock_batch.claim and b.finished_at is null for update;
    if not found then
        raise exception 'Batch % is not yours, or not any more', batch_id
            using errcode = 'TL011', hint = 'Another process has taken it over, or finished it: drop what you did with it.';
    end if;
end
$$;
