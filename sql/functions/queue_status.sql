-- queue_status(): one row for each queue: its events, its slots and its consumers.
--
-- slot_bytes: the size of each slot with its index. slot_waits_for: for each slot an array of the consumers that have not finished what is in it. current_slot: the
-- one that is being written. pending_events, lag: of the consumer that is furthest behind, and the age of its oldest pending event.
create or replace function pgtally.queue_status()
returns table (
    name text, key_type text, rotation_period interval, consumers text[], pending_events bigint, lag interval,
    current_slot integer, slot_bytes bigint[], slot_waits_for json
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    queue record;
    consumer record;
    pending bigint;
    oldest timestamptz;
begin
    for queue in select * from pgtally.queue order by name loop
        name := queue.name;
        key_type := queue.key_type;
        rotation_period := queue.rotation_period;
        consumers := '{}';
        pending_events := 0;
        lag := interval '0';
        current_slot := pgtally.slot_at(clock_timestamp(), queue.rotation_period);
        slot_bytes := array(
            select pg_total_relation_size(format('pgtally.event_%s_%s', queue.queue_id, slot)::regclass)
            from generate_series(0, 2) slot order by slot);
        slot_waits_for := (select json_agg(pgtally.slot_waits_for(queue.queue_id, slot) order by slot) from generate_series(0, 2) slot);
        for consumer in
            select c.name, pgtally.unfinished_since(c.consumer_id) as boundary
            from pgtally.consumer c
            where c.queue_id = queue.queue_id order by c.name
        loop
            consumers := consumers || consumer.name;
            execute format('select count(*), min(ev_time) from (%s) e', pgtally.events_query(queue.queue_id, consumer.boundary, null, 'ev_time'))
            into pending, oldest;
            pending_events := greatest(pending_events, pending);
            lag := greatest(lag, clock_timestamp() - oldest); -- ignores a NULL
        end loop;
        return next;
    end loop;
end
$$;
