-- drop_source(queue_id): takes the triggers of a queue's source off its table and partitions.
create or replace function pgtally.drop_source(queue_id integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    -- With the functions go the triggers, wherever they are.
    execute format('drop function if exists pgtally.source_%1$s() cascade', queue_id);
    execute format('drop function if exists pgtally.source_%1$s_truncate() cascade', queue_id);
    delete from pgtally.source s where s.queue_id = drop_source.queue_id;
end
$$;
