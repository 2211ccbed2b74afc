-- require_bucket(counter_name, given): a bucket of a definition, {"width", "retain", "time_zone"}, as it is stored, without counter and number.
--
-- Errors: TL003 when it will not do.
create or replace function pgtally.require_bucket(counter_name text, given jsonb) returns pgtally.bucket
language plpgsql stable set search_path = pg_catalog, pg_temp set intervalstyle = postgres as $$
declare
    bucket pgtally.bucket;
    problem text;
begin
    begin
        -- 24 hours are a day. Months stay what they are.
        bucket.width := justify_hours((given ->> 'width')::interval);
        bucket.retain := nullif(given ->> 'retain', 'forever')::interval;
    exception when others then
        problem := sqlerrm;
    end;
    if bucket.width >= interval '1 day' then
        bucket.time_zone := coalesce(given ->> 'time_zone', 'UTC');
    end if;
    if problem is null then
        problem := case
            when jsonb_typeof(given) <> 'object' or given - array['width', 'retain', 'time_zone'] <> '{}' then 'it has other parts than width, retain and time_zone'
            when bucket.width is null then 'it has no width'
            when given ->> 'retain' is null then 'it does not say how long it is kept'
            when bucket.width <= interval '0' then 'its width is not above 0'
            when mod(extract(epoch from bucket.width), 1) <> 0 then 'its width is no whole number of seconds'
            when bucket.width < interval '1 day' and mod(86400, extract(epoch from bucket.width)) <> 0 then 'its width does not divide a day'
            when bucket.width >= interval '1 day' and bucket.width::text not in ('1 day', '7 days', '1 mon', '1 year') then 'its width is neither a part of a day, nor a day, a week, a month or a year'
            when bucket.width < interval '1 day' and given ->> 'time_zone' is not null then 'only buckets of a day or more have a time zone'
            when bucket.time_zone is not null and not exists (select from pg_timezone_names z where z.name = bucket.time_zone) then format('there is no time zone "%s"', bucket.time_zone)
            when bucket.retain < bucket.width then 'it is kept for less than its width'
            when not isfinite(bucket.retain) or bucket.retain > interval '1000 years' then 'it is kept for more than 1000 years, which is "forever"'
        end;
    end if;
    if problem is not null then
        raise exception 'Counter "%": the bucket % cannot be used: %', counter_name, given, problem
            using errcode = 'TL003', hint = 'Use for example {"width": "1 hour", "retain": "30 days"} or {"width": "1 day", "retain": "forever", "time_zone": "Europe/Berlin"}.';
    end if;
    -- In seconds, which are as long everywhere. Four of these are what is retained and a twentieth more: a month may have 31 days and a day 25 hours, where the server reckons with 30 and 24, and whoever asks for all that
    -- is retained must not be late because his clock is behind, or his question takes a moment.
    bucket.slot_span := make_interval(secs => ceil(extract(epoch from bucket.retain) * 1.05 / 4)::double precision);
    bucket.kept_since := pgtally.kept_since(bucket);
    return bucket;
end
$$;
