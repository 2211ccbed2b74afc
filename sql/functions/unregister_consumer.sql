-- unregister_consumer(queue_name, consumer_name): removes a consumer, its position and its failed events.
--
-- Errors: TL001 when there is none of that name; TL010 when it is a counter (use drop_counter).
create or replace function pgtally.unregister_consumer(queue_name text, consumer_name text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.lock_consumer(queue_name, consumer_name);
begin
    if exists (select from pgtally.counter k where k.counter_id = id) then
        raise exception 'Consumer "%" of queue "%" is a counter', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Use drop_counter().';
    end if;
    -- Waits for whoever is at work on a batch, which may leave failed events.
    delete from pgtally.batch b where b.consumer_id = id;
    delete from pgtally.failed_event f where f.consumer_id = id;
    delete from pgtally.consumer c where c.consumer_id = id;
end
$$;
