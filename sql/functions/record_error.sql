-- record_error(counter_name, message): keeps why a counter could not go on, for counter_status(), until a batch succeeds.
create or replace function pgtally.record_error(counter_name text, message text) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    update pgtally.consumer c set last_error = message, last_error_at = clock_timestamp()
    from pgtally.counter k
    where k.name = counter_name and c.consumer_id = k.counter_id
$$;
