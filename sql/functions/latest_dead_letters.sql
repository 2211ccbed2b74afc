-- latest_dead_letters(max_letters): what consumers of all queues were not able to handle, the latest first. number: as in replay_dead_letters().
--
-- Without the events' data, so that whoever looks after consumers need not see that; though a reason may quote some.
create or replace function pgtally.latest_dead_letters(max_letters integer default 20)
returns table (number bigint, queue text, consumer text, key text, attempts integer, failed_at timestamptz, reason text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select f.failed_event_id, q.name, c.name, f.ev_key, f.attempts, f.failed_at, f.reason
    from pgtally.failed_event f join pgtally.consumer c using (consumer_id) join pgtally.queue q using (queue_id)
    where f.retry_at is null
    order by f.failed_event_id desc limit max_letters
$$;
