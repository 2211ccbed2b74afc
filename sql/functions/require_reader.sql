-- require_reader(queue_name, consumer_name): a consumer that is not a counter, unlocked.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.require_reader(queue_name text, consumer_name text) returns pgtally.consumer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    queue constant integer := pgtally.queue_id(queue_name);
    consumer pgtally.consumer;
begin
    select * into consumer from pgtally.consumer c where c.queue_id = queue and c.name = consumer_name;
    if not found then
        raise exception 'Queue "%" has no consumer "%"', queue_name, consumer_name
            using errcode = 'TL001', hint = 'Make it with register_consumer().';
    elsif exists (select from pgtally.counter k where k.counter_id = consumer.consumer_id) then
        raise exception 'Consumer "%" of queue "%" is a counter', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Register a consumer of another name.';
    end if;
    return consumer;
end
$$;
