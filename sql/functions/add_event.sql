-- add_event(counter_name, key, delta): insert_event() on the counter's queue; returns the transaction's id, for is_stored().
--
-- Errors: TL001 when there is no such counter; as insert_event().
create or replace function pgtally.add_event(counter_name text, key text, delta bigint default 1) returns xid8
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.insert_event(q.name, key, delta)
    from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = counter.counter_id;
    return pg_current_xact_id();
end
$$;
