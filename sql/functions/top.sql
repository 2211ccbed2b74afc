-- top(counter_name, max_keys, from_time, to_time, scope): the keys with the greatest counts, those first; of keys with the same count the lower key first. Only counts above 0.
--
-- Without from_time: the stored counts of all time, of a counter that was defined with a ranking. With it: the sums of the time buckets that start from from_time on and before
-- to_time (NULL: now). Those are as narrow as the counter keeps them for that time, and not more than 240, where it has such; it reads all of them.
--
-- scope: only keys whose rows of the target have these values, such as {"category_id": 7}.
--
-- Errors: TL001 when there is no such counter; TL003 when max_keys is not from 1 to 10,000 or scope or the times will not do; TL009 when the counter has no ranking or no buckets.
create or replace function pgtally.top(
    counter_name text, max_keys integer default 10, from_time timestamptz default null, to_time timestamptz default null, scope jsonb default null
) returns table (key text, count bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso set jit = off set work_mem = '64MB' as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    bucket pgtally.bucket;
begin
    perform pgtally.require_limit(counter_name, max_keys);
    if from_time is null and to_time is null then
        if not counter.ranked then
            raise exception 'Counter "%" has no ranking', counter_name
                using errcode = 'TL009', hint = 'Define it with one (ranking), or ask for the time from which to count on, where it has buckets.';
        end if;
        return query select h.key, h.value::bigint from pgtally.head(counter, pgtally.ranking_table(counter), 'r.value', 'r.level >= 1', 'r.level desc, r.value desc', max_keys, scope) h;
        return;
    end if;
    -- What starts later has likes of the future only.
    to_time := coalesce(to_time, clock_timestamp());
    bucket := pgtally.bucket_for(counter, from_time, to_time);
    return query execute format(
        'select b.key::text, pgtally.sum_delta(b.count) from (%s) b %s group by b.key having pgtally.sum_delta(b.count) > 0 order by 2 desc, b.key limit $3',
        pgtally.bucket_rows(bucket, 'r.start >= $1 and r.start < $2'),
        case when scope is not null then format('join %s t on t.%I = b.key where %s', counter.target_table, counter.target_key, pgtally.scope_condition(counter, scope)) end)
    using from_time, to_time, max_keys;
    perform pgtally.require_kept(counter, bucket, from_time);
end
$$;
