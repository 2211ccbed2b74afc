-- queue_id(queue_name): the number of a queue, under which its tables are named.
--
-- Errors: TL001 when there is no such queue.
create or replace function pgtally.queue_id(queue_name text) returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := (select q.queue_id from pgtally.queue q where q.name = queue_name);
begin
    if id is null then
        raise exception 'There is no queue "%"', queue_name
            using errcode = 'TL001', hint = 'Make it with create_queue(), or see the names in the table queue.';
    end if;
    return id;
end
$$;
