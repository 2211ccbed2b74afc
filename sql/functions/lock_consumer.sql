-- lock_consumer(queue_name, consumer_name): locks a consumer's row until the end of the transaction; returns its number.
--
-- Errors: TL001 when there is no such queue or consumer.
create or replace function pgtally.lock_consumer(queue_name text, consumer_name text) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    queue constant integer := pgtally.queue_id(queue_name);
    id integer;
begin
    select c.consumer_id into id from pgtally.consumer c where c.queue_id = queue and c.name = consumer_name for update;
    if id is null then
        raise exception 'Queue "%" has no consumer "%"', queue_name, consumer_name
            using errcode = 'TL001', hint = 'Make it with register_consumer().';
    end if;
    return id;
end
$$;
