-- consumer_status(): one row for each consumer that is not a counter, and where it stands.
--
-- pending_events, lag: what it has not finished, and the age of the oldest of that. open_batches: given and not finished. retrying_events, dead_letters: see
-- fail_event(). Counts what is pending, so it takes as long as reading it would. Where the position is another cluster's, every event there is
-- counts as pending.
create or replace function pgtally.consumer_status()
returns table (
    queue text, name text, pending_events bigint, lag interval, open_batches bigint, last_batch_at timestamptz, retrying_events bigint, dead_letters bigint,
    paused_at timestamptz, last_error text, last_error_at timestamptz
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    consumer record;
begin
    for consumer in
        select c.*, q.name as queue_name, pgtally.unfinished_since(c.consumer_id) as boundary
        from pgtally.consumer c join pgtally.queue q using (queue_id)
        where not exists (select from pgtally.counter k where k.counter_id = c.consumer_id)
        order by q.name, c.name
    loop
        queue := consumer.queue_name;
        name := consumer.name;
        paused_at := consumer.paused_at;
        last_error := consumer.last_error;
        last_error_at := consumer.last_error_at;
        execute format('select count(*), coalesce(clock_timestamp() - min(ev_time), interval ''0'') from (%s) e',
            case when consumer.system_identifier = pgtally.system_identifier() then pgtally.events_query(consumer.queue_id, consumer.boundary, null, 'ev_time')
                else format('select ev_time from pgtally.event_%s', consumer.queue_id) end)
        into pending_events, lag;
        select count(*) filter (where b.finished_at is null), max(b.finished_at) filter (where b.batches > 0) into open_batches, last_batch_at
        from pgtally.batch b where b.consumer_id = consumer.consumer_id;
        select count(*) filter (where f.retry_at is not null), count(*) filter (where f.retry_at is null) into retrying_events, dead_letters
        from pgtally.failed_event f where f.consumer_id = consumer.consumer_id;
        return next;
    end loop;
end
$$;
