-- replay_dead_letters(queue_name, consumer_name, ids): gives dead letters to the consumer again, as if they had never failed.
--
-- ids: which ones (failed_event_id); NULL for all. Returns how many.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.replay_dead_letters(queue_name text, consumer_name text, ids bigint[] default null) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp as $$
    with replayed as (
        update pgtally.failed_event f set retry_at = clock_timestamp(), attempts = 0
        where f.failed_event_id in (select d.failed_event_id from pgtally.dead_letters(queue_name, consumer_name) d) and f.retry_at is null
            and (ids is null or f.failed_event_id = any (ids))
        returning 1
    )
    select count(*) from replayed
$$;
