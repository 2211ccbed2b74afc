-- drop_queue(queue_name): removes a queue with its events and the triggers of its source.
--
-- Errors: TL001 when there is no such queue; TL010 while it has consumers or counters, or is that of a counter's milestones.
create or replace function pgtally.drop_queue(queue_name text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.queue_id(queue_name);
    consumers text;
    milestones_of text;
begin
    -- No consumer can be registered from here on: its foreign key needs this row.
    perform from pgtally.queue q where q.queue_id = id for update;
    select string_agg(format('%I', c.name), ', ' order by c.name) into consumers from pgtally.consumer c where c.queue_id = id;
    if consumers is not null then
        raise exception 'Queue "%" is still read by: %', queue_name, consumers
            using errcode = 'TL010', hint = 'Drop these counters or unregister these consumers first.';
    end if;
    select k.name into milestones_of from pgtally.counter k where k.milestones is not null and k.name || '.milestones' = queue_name;
    if milestones_of is not null then
        raise exception 'Queue "%" is that of the milestones of the counter "%"', queue_name, milestones_of
            using errcode = 'TL010', hint = 'It is dropped with the counter.';
    end if;
    perform pgtally.drop_source(id);
    execute format('drop function pgtally.insert_event_%s(text, bigint, jsonb)', id);
    execute format('drop table pgtally.event_%s', id);
    delete from pgtally.queue q where q.queue_id = id;
end
$$;
