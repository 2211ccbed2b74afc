-- unfinished_since(consumer_id): the boundary up to which the consumer has finished everything.
create or replace function pgtally.unfinished_since(consumer_id integer) returns pg_snapshot
language sql stable set search_path = pg_catalog, pg_temp as $$
    select coalesce(
        (select b.start_boundary from pgtally.batch b where b.consumer_id = $1 and b.finished_at is null order by b.batch_id limit 1),
        (pgtally.consumer_position($1)).end_boundary)
$$;
