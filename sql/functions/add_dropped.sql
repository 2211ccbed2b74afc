-- add_dropped(counter_id, dropped_events): adds to a counter's total of dropped events, outside a batch.
--
-- Its position does not move: the new row of batch repeats it.
create or replace function pgtally.add_dropped(counter_id integer, dropped_events bigint) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    position pgtally.batch;
begin
    if dropped_events > 0 then
        perform from pgtally.consumer c where c.consumer_id = counter_id for update;
        position := pgtally.consumer_position(counter_id);
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
        values (counter_id, position.end_boundary, position.end_boundary, clock_timestamp(),
            position.batches, position.events, position.dropped_events + add_dropped.dropped_events);
    end if;
end
$$;
