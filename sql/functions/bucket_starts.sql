-- bucket_starts(width, time_zone, from_time, to_time): the starts of all buckets that start from from_time on and before to_time.
create or replace function pgtally.bucket_starts(width interval, time_zone text, from_time timestamptz, to_time timestamptz) returns timestamptz[]
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso as $$
declare
    first_start timestamptz;
    zone constant text := coalesce(time_zone, 'UTC');
begin
    execute 'select ' || pgtally.bucket_start(width, zone, '$1') into first_start using from_time;
    -- By the clock of the time zone, where days are not all as long. One that a zone has left out (2011-12-30 in Samoa) would begin with the next.
    return array(
        select distinct s.start from (
            select local at time zone zone as start from generate_series(first_start at time zone zone, to_time at time zone zone, width) local
        ) s
        where s.start >= from_time and s.start < to_time order by 1);
end
$$;
