-- lock_corrections(counter_name): the counter, with its row locked until the end of the transaction, so that nobody else corrects it.
--
-- Whoever measures and corrects must not do so beside another who does, or both correct the same. Batches do not need this lock.
--
-- Errors: TL001 when there is no such counter; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.lock_corrections(counter_name text) returns pgtally.counter
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtally.require_read_committed();
    perform from pgtally.counter k where k.name = counter_name for update;
    return pgtally.require_counter(counter_name);
end
$$;
