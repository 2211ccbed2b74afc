-- consumer_position(consumer_id): the consumer's newest batch, open or finished.
create or replace function pgtally.consumer_position(consumer_id integer) returns pgtally.batch
language sql stable set search_path = pg_catalog, pg_temp as $$
    select b from pgtally.batch b where b.consumer_id = $1 order by b.batch_id desc limit 1
$$;
