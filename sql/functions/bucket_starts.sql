-- bucket_starts(width, time_zone, from_time, to_time): the starts of all buckets that start from from_time on and before to_time.
create or replace function pgtally.bucket_starts(width interval, time_zone text, from_time timestamptz, to_time timestamptz) returns timestamptz[]
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso as $$
declare
    first_start timestamptz;
    zone constant text := coalesce(time_zone, 'UTC');
begin
    execute 'select ' || pgtally.bucket_start(width, zone, '$1') into first_start using from_time;
    -- By the clock of the time zone, where days are not all as long.
    return array(
        select s.start from (
            select local at time zone zone as start from generate_series(first_start at time zone zone, to_time at time zone zone, width) local
        ) s
        where s.start >= from_time and s.start < to_time order by s.start);
end
$$;
