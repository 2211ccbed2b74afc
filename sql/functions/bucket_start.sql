-- bucket_start(width, time_zone, moment): SQL for the start of the bucket that a time falls into. moment: SQL for that time.
--
-- Buckets narrower than a day divide the day in UTC. Days, weeks (from Monday), months and years begin at midnight in the time zone.
create or replace function pgtally.bucket_start(width interval, time_zone text, moment text) returns text
language sql stable set search_path = pg_catalog, pg_temp set intervalstyle = postgres as $$
    select case
        when width < interval '1 day' or width <= interval '7 days' and time_zone = 'UTC'
            -- A Monday. Much faster than date_trunc().
            then format('pg_catalog.date_bin(%L, %s, ''2000-01-03 00:00:00+00'')', width, moment)
        else format('pg_catalog.date_trunc(%L, %s, %L)', case width::text when '1 day' then 'day' when '7 days' then 'week' when '1 mon' then 'month' else 'year' end, moment, time_zone) end
$$;
