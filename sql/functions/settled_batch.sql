-- settled_batch(consumer_id): the consumer's newest batch that was finished at least a minute ago, or a rotation period
-- where that is shorter, as were all before it; no row when there is none.
create or replace function pgtally.settled_batch(consumer_id integer) returns setof pgtally.batch
language sql stable set search_path = pg_catalog, pg_temp as $$
    select b.*
    from pgtally.batch b
    where b.consumer_id = $1 and b.finished_at <= clock_timestamp() - (
        select least(interval '1 minute', q.rotation_period)
        from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = $1)
    and b.batch_id < coalesce((select min(o.batch_id) from pgtally.batch o where o.consumer_id = $1 and o.finished_at is null), 9223372036854775807)
    order by b.batch_id desc limit 1
$$;
