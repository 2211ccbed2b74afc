-- drop_source(queue_id): takes the triggers of a queue's source off its table and partitions.
create or replace function pgtally.drop_source(queue_id integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    operation text;
begin
    -- With the functions go the triggers, wherever they are.
    for operation in select unnest(array['insert', 'update', 'delete', 'truncate']) loop
        execute format('drop function if exists pgtally.source_%s_%s() cascade', queue_id, operation);
    end loop;
    delete from pgtally.source s where s.queue_id = drop_source.queue_id;
end
$$;
