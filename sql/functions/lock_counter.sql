-- lock_counter(counter_name): locks the counter's consumer until the end of the transaction.
--
-- Returns the counter, or NULL when another transaction is at work for it.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.lock_counter(counter_name text) returns pgtally.counter
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform from pgtally.consumer c where c.consumer_id = counter.counter_id for update skip locked;
    if not found then
        return null;
    end if;
    return counter;
end
$$;
