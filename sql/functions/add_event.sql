-- add_event(counter_name, key, delta): insert_event() on the counter's queue; returns the transaction's id, for is_stored().
--
-- Errors: TL001 when there is no such counter; as insert_event().
create or replace function pgtally.add_event(counter_name text, key text, delta bigint default 1) returns xid8
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtally.insert_event(q.name, key, delta)
    from pgtally.counter k join pgtally.consumer c on c.consumer_id = k.counter_id join pgtally.queue q using (queue_id)
    where k.name = counter_name;
    if not found then
        perform pgtally.require_counter(counter_name);
    end if;
    return pg_current_xact_id();
end
$$;
