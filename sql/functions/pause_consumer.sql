-- pause_consumer(queue_name, consumer_name): no batch is given any more; those at work are finished. Events wait.
--
-- Returns whether it was not paused. Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.pause_consumer(queue_name text, consumer_name text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
begin
    update pgtally.consumer c set paused_at = clock_timestamp() where c.consumer_id = consumer.consumer_id and c.paused_at is null;
    return found;
end
$$;
