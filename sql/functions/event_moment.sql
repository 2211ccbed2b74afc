-- event_moment(counter): SQL for the time of an event of the counter's queue, ev_at or ev_time, in whole minutes, or seconds where a bucket is narrower: what buckets and scores are
-- computed from, so that a batch has few different ones.
--
-- time: SQL to round instead of those columns, such as the source's.
create or replace function pgtally.event_moment(counter pgtally.counter, moment text default null) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select format('pg_catalog.date_bin(%L, %s, ''2000-01-01 00:00:00+00'')',
        case when exists (select from pgtally.bucket b where b.counter_id = counter.counter_id and mod(extract(epoch from b.width), 60) <> 0) then '1 second' else '1 minute' end,
        coalesce(moment, case when exists (
            select from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id and s.time_column is not null
        ) then 'ev_at' else 'ev_time' end))
$$;
