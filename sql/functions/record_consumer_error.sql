-- record_consumer_error(queue_name, consumer_name, message): keeps why a consumer could not go on, for consumer_status(); NULL when it goes on.
create or replace function pgtally.record_consumer_error(queue_name text, consumer_name text, message text) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    update pgtally.consumer c set last_error = message, last_error_at = case when message is not null then clock_timestamp() end
    from pgtally.queue q
    where q.queue_id = c.queue_id and q.name = queue_name and c.name = consumer_name
$$;
