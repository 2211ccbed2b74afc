-- bucket_for(counter, from_time, to_time): the bucket whose counts say most exactly what happened from one time to the other: the narrowest that is kept for so long and of which there are not more than
-- 240; else the widest that is kept and not wider than that time; else one that begins at that time, such as the day of today.
--
-- Errors: TL003 when from_time is NULL or not before to_time, or one of them is infinite; TL009 when the counter has no buckets, or none that are kept for so long, or fit into that time.
create or replace function pgtally.bucket_for(counter pgtally.counter, from_time timestamptz, to_time timestamptz) returns pgtally.bucket
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    bucket pgtally.bucket;
    first_start timestamptz;
begin
    if from_time is null or not isfinite(from_time) or not isfinite(to_time) or from_time >= to_time then
        raise exception 'Counter "%": there is no time from % to %', counter.name, coalesce(from_time::text, 'NULL'), to_time
            using errcode = 'TL003', hint = 'Give a time that is before the other.';
    end if;
    if not exists (select from pgtally.bucket b where b.counter_id = counter.counter_id) then
        raise exception 'Counter "%" has no time buckets', counter.name using errcode = 'TL009', hint = 'Define it with buckets.';
    end if;
    select b.* into bucket
    from pgtally.bucket b
    where b.counter_id = counter.counter_id and pgtally.kept_since(b) <= from_time
    order by b.width > to_time - from_time, to_time - from_time > 240 * b.width, case when to_time - from_time > 240 * b.width then -b.number else b.number end limit 1;
    perform pgtally.require_kept(counter, bucket, from_time);
    if bucket.width > to_time - from_time then
        execute 'select ' || pgtally.bucket_start(bucket.width, bucket.time_zone, '$1') into first_start using from_time;
        if first_start <> from_time then
            raise exception 'Counter "%" has no buckets that are kept since % and fit between that and %', counter.name, from_time, to_time
                using errcode = 'TL009', hint = 'Ask for a longer time, or define the counter with buckets that are narrower; bucket_status() has those that there are.';
        end if;
    end if;
    return bucket;
end
$$;
