-- spikes(counter_name, max_keys, width, windows, min_count, scope): the keys that are counted more often than they use to be, the most surprising first.
--
-- count: in the last `width` of time. expected: in as much time, by the mean of the `windows` such times before that. score: (count - expected) / sqrt(expected + 1), about how many standard deviations of a
-- Poisson distribution it lies above. Only keys with a count of min_count or more, so that three likes are not a trend, and a score above 0.
--
-- From the time buckets: what has just happened from the narrowest that are kept for so long, what was expected from the widest that divide the width. Reads all that happened in the last window, and
-- of those keys what came before. scope: as top().
--
-- Errors: TL001 when there is no such counter; TL003 when max_keys is not from 1 to 10,000, windows not from 1 to 1,000, min_count below 1, or width or scope will not do; TL009 when the counter's buckets do not divide the
-- width or are not kept for so long.
create or replace function pgtally.spikes(
    counter_name text, max_keys integer default 10, width interval default '1 hour', windows integer default 24, min_count bigint default 10, scope jsonb default null
) returns table (key text, score double precision, count bigint, expected double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso set jit = off set work_mem = '64MB' as $$
#variable_conflict use_variable
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    narrow pgtally.bucket;
    wide pgtally.bucket;
    until_time timestamptz;
    from_time timestamptz;
    base_time timestamptz;
    base_from timestamptz;
begin
    perform pgtally.require_limit(counter_name, max_keys);
    if windows is null or windows not between 1 and 1000 or min_count is null or min_count < 1 or width is null or width <= interval '0' then
        raise exception 'Counter "%": no baseline can be % windows of %, with a count of % or more', counter_name, coalesce(windows::text, 'NULL'), coalesce(width::text, 'NULL'), coalesce(min_count::text, 'NULL')
            using errcode = 'TL003', hint = 'Use 1 to 1000 windows of a positive length, and a count of 1 or more.';
    end if;
    -- Buckets of days and more have no one length that would divide another.
    select b.* into narrow from pgtally.bucket b
    where b.counter_id = counter.counter_id and pgtally.kept_since(b) <= clock_timestamp() - width and mod(extract(epoch from width), extract(epoch from b.width)) = 0
        and (b.width <= interval '1 day' or b.width = width)
    order by b.number limit 1;
    select b.* into wide from pgtally.bucket b
    where b.counter_id = counter.counter_id and pgtally.kept_since(b) <= clock_timestamp() - width * (windows + 2) and mod(extract(epoch from width), extract(epoch from b.width)) = 0
        and (b.width <= interval '1 day' or b.width = width)
    order by b.number desc limit 1;
    if narrow.width is null or wide.width is null then
        raise exception 'Counter "%" has no buckets that divide % and are kept for % times as long', counter_name, width, windows + 2
            using errcode = 'TL009', hint = 'The baseline is followed by the window that is compared with it and one that has just begun. Ask for fewer or other windows, or define the counter with such buckets; bucket_status() has those that there are.';
    end if;
    execute 'select ' || pgtally.bucket_start(narrow.width, narrow.time_zone, '$1') into until_time using clock_timestamp();
    -- By the clock of the buckets' time zone, where days are not all as long; the session's does not matter.
    until_time := ((until_time at time zone coalesce(narrow.time_zone, 'UTC')) + narrow.width) at time zone coalesce(narrow.time_zone, 'UTC');
    from_time := ((until_time at time zone coalesce(narrow.time_zone, 'UTC')) - width) at time zone coalesce(narrow.time_zone, 'UTC');
    execute 'select ' || pgtally.bucket_start(wide.width, wide.time_zone, '$1') into base_time using from_time;
    base_from := ((base_time at time zone coalesce(wide.time_zone, 'UTC')) - width * windows) at time zone coalesce(wide.time_zone, 'UTC');
    return query execute format(
        'with latest as materialized (
            select b.key, pgtally.sum_delta(b.count) as count from (%1$s) b %3$s group by b.key having pgtally.sum_delta(b.count) >= $4
        ), earlier as (
            select b.key, pgtally.sum_delta(b.count)::double precision / $5 as expected from (%2$s) b where b.key in (select l.key from latest l) group by b.key
        )
        select l.key::text, (l.count - coalesce(e.expected, 0)) / sqrt(greatest(coalesce(e.expected, 0), 0) + 1), l.count, coalesce(e.expected, 0)
        from latest l left join earlier e on e.key = l.key where l.count > coalesce(e.expected, 0) order by 2 desc, l.key limit $6',
        pgtally.bucket_rows(narrow, 'r.start >= $1 and r.start < $7'), pgtally.bucket_rows(wide, 'r.start >= $2 and r.start < $3'),
        case when scope is not null then format('join %s t on t.%I = b.key where %s', counter.target_table, counter.target_key, pgtally.scope_condition(counter, scope)) end)
    using from_time, base_from, base_time, min_count, windows, max_keys, until_time;
    perform pgtally.require_kept(counter, narrow, from_time);
    perform pgtally.require_kept(counter, wide, base_from);
end
$$;
