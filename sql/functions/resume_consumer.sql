-- resume_consumer(queue_name, consumer_name): batches are given again.
--
-- Returns whether it was paused. Errors: as pause_consumer().
create or replace function pgtally.resume_consumer(queue_name text, consumer_name text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
begin
    update pgtally.consumer c set paused_at = null where c.consumer_id = consumer.consumer_id and c.paused_at is not null;
    return found;
end
$$;
