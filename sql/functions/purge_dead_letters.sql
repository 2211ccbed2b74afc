-- purge_dead_letters(queue_name, consumer_name, ids): removes dead letters for good.
--
-- ids: which ones (failed_event_id); NULL for all. Returns how many.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.purge_dead_letters(queue_name text, consumer_name text, ids bigint[] default null) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp as $$
    with purged as (
        delete from pgtally.failed_event f
        where f.failed_event_id in (select d.failed_event_id from pgtally.dead_letters(queue_name, consumer_name) d) and f.retry_at is null
            and (ids is null or f.failed_event_id = any (ids))
        returning 1
    )
    select count(*) from purged
$$;
