-- add_events(counter_name, keys, deltas): add_event() for many keys in one INSERT; returns the transaction's id.
--
-- All or none: one key that will not do is an error for all. With no keys it does nothing but check the counter.
--
-- Errors: as add_event(); TL007 also when there are not as many deltas as keys.
create or replace function pgtally.add_events(counter_name text, keys text[], deltas bigint[]) returns xid8
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    queue pgtally.queue;
    refused record;
begin
    select q.* into strict queue from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = counter.counter_id;
    if cardinality(keys) is distinct from cardinality(deltas) then
        raise exception 'Counter "%": there are % keys and % deltas', counter_name, cardinality(keys), cardinality(deltas)
            using errcode = 'TL007', hint = 'Give one delta for each key.';
    end if;
    select u.key, u.delta into refused
    from unnest(keys, deltas) u(key, delta) where u.key is null or u.delta is null or octet_length(u.key) > 2000 limit 1;
    if found or exists (select from pgtally.source s where s.queue_id = queue.queue_id) then
        -- Which says what is wrong.
        perform pgtally.insert_event(queue.name, refused.key, refused.delta);
    end if;
    execute format('insert into pgtally.event_%s (ev_key, ev_delta) select u.key::%s, u.delta from unnest($1, $2) u(key, delta)', queue.queue_id, queue.key_type)
    using keys, deltas;
    return pg_current_xact_id();
end
$$;
