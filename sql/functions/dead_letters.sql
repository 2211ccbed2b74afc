-- dead_letters(queue_name, consumer_name): the events that the consumer was not able to handle, oldest first.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.dead_letters(queue_name text, consumer_name text)
returns setof pgtally.failed_event language sql stable set search_path = pg_catalog, pg_temp as $$
    select f.* from pgtally.failed_event f
    where f.consumer_id = (pgtally.require_reader(queue_name, consumer_name)).consumer_id and f.retry_at is null
    order by f.failed_event_id
$$;
