-- series(counter_name, key, width, from_time, to_time): what was counted for a key in each bucket of time that starts from from_time on and before to_time, with 0 where nothing was.
--
-- width: that of buckets of the counter, or one that they divide: days can be had from hours (in UTC), weeks, months and years from days (in the days' time zone). to_time: now, where it is NULL. from_time: 60
-- buckets before. Begins with the first bucket that is kept entirely. Includes what has been applied.
--
-- Errors: TL001 when there is no such counter; TL003 when the times will not do, or there would be more than 10,000 buckets or more than 1,000,000 to add up; TL009 when no buckets of the counter divide the width; 22P02 when the key is not of the
-- queue's type.
create or replace function pgtally.series(
    counter_name text, key text, width interval, from_time timestamptz default null, to_time timestamptz default null
) returns table (start timestamptz, count bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso set intervalstyle = postgres set jit = off as $$
#variable_conflict use_variable
declare
    most constant integer := 10000;
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    wanted constant interval := justify_hours(width);
    bucket pgtally.bucket;
    zone text;
    since timestamptz;
    starts timestamptz[];
    counts bigint[];
begin
    to_time := coalesce(to_time, clock_timestamp());
    if wanted <= interval '1 year' then
        from_time := coalesce(from_time, ((to_time at time zone 'UTC') - 60 * wanted) at time zone 'UTC');
    end if;
    select b.* into bucket from pgtally.bucket b
    where b.counter_id = counter.counter_id and (
        b.width::text = wanted::text
        or b.width < interval '1 day' and wanted < interval '1 day' and wanted > interval '0' and mod(86400, extract(epoch from wanted)) = 0 and mod(extract(epoch from wanted), extract(epoch from b.width)) = 0
        or wanted::text in ('1 day', '7 days', '1 mon', '1 year') and (b.width <= interval '1 day' or wanted::text = '1 year' and b.width::text = '1 mon'))
    order by pgtally.kept_since(b) <= from_time desc, case when pgtally.kept_since(b) <= from_time then interval '0' else now() - pgtally.kept_since(b) end desc, b.width desc, b.number limit 1;
    if bucket.width is null then
        raise exception 'Counter "%" has no buckets from which a series of % could be made', counter_name, coalesce(width::text, 'NULL')
            using errcode = 'TL009', hint = coalesce(
                'A width divides a day, or is a day, a week, a month or a year, and buckets divide it; there are those of ' || (select string_agg(b.width::text, ', ' order by b.number) from pgtally.bucket b where b.counter_id = counter.counter_id) || '.',
                'Define it with buckets.');
    elsif not isfinite(from_time) or not isfinite(to_time) or from_time >= to_time then
        raise exception 'Counter "%": there is no series from % to %', counter_name, from_time, to_time
            using errcode = 'TL003', hint = 'Give a time that is before the other.';
    elsif extract(epoch from to_time - from_time) / extract(epoch from wanted) > most then
        raise exception 'Counter "%": a series from % to % has more than % buckets of %', counter_name, from_time, to_time, most, wanted
            using errcode = 'TL003', hint = 'Ask for a shorter time or a greater width.';
    elsif extract(epoch from to_time - greatest(from_time, pgtally.kept_since(bucket))) / extract(epoch from bucket.width) > 100 * most then
        raise exception 'Counter "%": a series from % to % would be the sum of more than % buckets of %', counter_name, from_time, to_time, 100 * most, bucket.width
            using errcode = 'TL003', hint = 'Ask for a shorter time, or define the counter with wider buckets that are kept for so long.';
    end if;
    zone := coalesce(bucket.time_zone, 'UTC');
    -- Again where buckets have come to their end meanwhile (kept_since).
    while since is null or since < pgtally.kept_since(bucket) loop
        since := pgtally.kept_since(bucket);
        starts := pgtally.bucket_starts(wanted, zone, greatest(from_time, since), to_time);
        -- Each by itself, as the table is in the order of time and then of keys.
        execute format(
            'select array_agg(coalesce(c.count, 0) order by s.start)
            from unnest($1) s(start)
            left join (select %s as start, pgtally.sum_delta(b.count) as count from (%s) b group by 1) c on c.start = s.start',
            pgtally.bucket_start(wanted, zone, 'b.start'),
            pgtally.bucket_rows(bucket, format('r.key = $2::%s and r.start = any ($3)', pgtally.key_type(counter))))
        into counts
        -- To the end of the last one, by the clock of the time zone; the session's does not matter.
        using starts, key, pgtally.bucket_starts(bucket.width, zone, starts[1], ((starts[cardinality(starts)] at time zone zone) + wanted) at time zone zone);
    end loop;
    return query select u.start, u.count from unnest(starts, counts) u(start, count);
end
$$;
