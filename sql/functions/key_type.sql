-- key_type(counter): the type of the keys in the counter's queue.
create or replace function pgtally.key_type(counter pgtally.counter) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select q.key_type from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = counter.counter_id
$$;
