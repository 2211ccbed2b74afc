-- time_drifts_query(counter, keys, after_key, last_key, moment): SQL text of a query for what drifts in the time buckets and decayed scores of these keys, or of this range of keys:
-- number (of the bucket; that of a score is negative, and 0 is what waits for the scores), key, start (NULL for a score), part (both in words), source, stored, pending; NULL where there is nothing to compare. Scores are as of `moment`.
--
-- As counts_query(): all are read in one snapshot, and there source = stored + pending for each bucket, up to rounding for each score. Where the rows of the source do not say when
-- they happened, nobody can tell into which bucket they belong.
--
-- What lies ahead is in no score (add_to_buckets), but waits: it is compared for itself, from somewhat further on, so that a batch which was applied a moment after `moment` has put none of it into one; up to there what waits counts
-- as stored.
--
-- A table of buckets is in the order of time: so its starts are found one by one through the index, and then of each of them the keys.
create or replace function pgtally.time_drifts_query(counter pgtally.counter, keys text[], after_key text, last_key text, moment timestamptz) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso as $$
declare
    source constant pgtally.source := (select s from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id);
    space constant record := pgtally.key_space(counter);
    event_filter constant text := pgtally.key_filter('ev_key', space.key_type, space.key_collation, keys, after_key, last_key);
    filter constant text := pgtally.key_filter('key', space.key_type, space.key_collation, keys, after_key, last_key);
    moments text;
    parts text[];
    bucket pgtally.bucket;
    trend pgtally.trend;
    weight text;
    ahead constant timestamptz := moment + interval '6 minutes';
begin
    if source.queue_id is not null and source.time_column is null then
        return null;
    end if;
    moments := format('select ev_key::%s as key, %s as moment, pgtally.sum_delta(ev_delta) as delta from (%s) e where %s group by 1, 2',
        space.key_type, pgtally.event_moment(counter), pgtally.pending_query(counter), event_filter);
    moments := format('pending as materialized (%s), source as materialized (%s)', moments, case when source.queue_id is null
        then format('select null::%s as key, null::timestamptz as moment, 0::bigint as delta where false', space.key_type)
        else format('select %1$I::%2$s as key, %3$s as moment, %4$s as delta from %5$s where (%6$s) and %7$s and %1$I is not null group by 1, 2',
            source.source_key, space.key_type, pgtally.event_moment(counter, pgtally.time_expression(source)),
            case when source.sum_expression is null then 'count(*)' else format('coalesce(pgtally.sum_delta((%s)::bigint), 0)', source.sum_expression) end,
            source.source_table, coalesce(source.where_condition, 'true'),
            pgtally.key_filter(source.source_key, space.key_type, space.key_collation, keys, after_key, last_key)) end);

    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id order by b.number loop
        parts := parts || format(
            'select %1$s as number, key::text as key, start, %5$L || start as part, sum(source)::numeric as source, sum(stored)::numeric as stored, sum(pending)::numeric as pending
            from (
                select key, %2$s as start, delta as source, 0 as stored, 0 as pending from source
                union all select key, %2$s, 0, 0, delta from pending
                union all (
                    with recursive starts(slot, start) as (
                        select v.slot::smallint, (select b.start from pgtally.bucket_%3$s_%1$s b where b.slot = v.slot order by b.start limit 1) from generate_series(0, 6) v(slot)
                        union all select s.slot, (select b.start from pgtally.bucket_%3$s_%1$s b where b.slot = s.slot and b.start > s.start order by b.start limit 1) from starts s where s.start is not null
                    )
                    select key, b.start, 0, count, 0 from starts s, pgtally.bucket_%3$s_%1$s b where b.slot = s.slot and b.start = s.start and %4$s
                )
                union all select key, start_%1$s, 0, count_%1$s, 0 from pgtally.recent_%3$s where %4$s and count_%1$s <> 0
            ) counts
            where start >= (select b.kept_since from pgtally.bucket b where b.counter_id = %3$s and b.number = %1$s)
            group by key, start having sum(source) <> sum(stored) + sum(pending)',
            bucket.number, pgtally.bucket_start(bucket.width, bucket.time_zone, 'moment'), counter.counter_id, filter, format('bucket of %s from ', bucket.width));
    end loop;
    for trend in select * from pgtally.trend t where t.counter_id = counter.counter_id order by t.number loop
        weight := format('delta * pgtally.power_of_two((extract(epoch from moment - %L) / %s)::double precision)', time_drifts_query.moment, extract(epoch from trend.half_life));
        parts := parts || format(
            'select %1$s as number, key::text as key, null::timestamptz as start, %9$L as part, sum(source)::numeric as source, sum(stored)::numeric as stored, sum(pending)::numeric as pending
            from (
                select key, %2$s as source, 0::double precision as stored, 0::double precision as pending from source where moment <= %3$L
                union all select key, 0, 0, %2$s from pending where moment <= %3$L
                union all select key, 0, %2$s, 0 from (select key::%10$s, time as moment, delta from pgtally.later_%7$s where time <= %3$L and %8$s) later
                union all select key, 0, score_%4$s * pgtally.power_of_two(((landmark_%4$s * %6$s - extract(epoch from %5$L::timestamptz)) / %6$s)::double precision), 0 from pgtally.recent_%7$s where %8$s
            ) scores
            group by key
            having abs(sum(source) - sum(stored) - sum(pending)) > 1e-6 * (abs(sum(source)) + abs(sum(stored)) + abs(sum(pending)) + 1)',
            -trend.number, weight, ahead, trend.number, time_drifts_query.moment, extract(epoch from trend.half_life), counter.counter_id, filter, format('score with half-life %s', trend.half_life), space.key_type);
    end loop;
    if found then
        parts := parts || format(
            'select 0 as number, key::text as key, moment as start, ''scores to come at '' || moment as part, sum(source)::numeric as source, sum(stored)::numeric as stored, sum(pending)::numeric as pending
            from (
                select key, moment, delta as source, 0 as stored, 0 as pending from source where moment > %1$L
                union all select key, moment, 0, 0, delta from pending where moment > %1$L
                union all select key, time, 0, delta, 0 from pgtally.later_%2$s where time > %1$L and %3$s
            ) waiting
            group by key, moment having sum(source) <> sum(stored) + sum(pending)',
            ahead, counter.counter_id, filter);
    end if;
    return format('with %s %s', moments, array_to_string(parts, ' union all '));
end
$$;
