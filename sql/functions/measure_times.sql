-- measure_times(counter, keys, after_key, last_key, correcting, max_drifts): the part of measure() for what a counter keeps beside the count itself: its time buckets, decayed scores and ranking.
--
-- drifting_keys: keys of which a bucket, a score or the ranking drifts; the same key may be there several times. drifting: as measure().
--
-- A ranking is compared with the target, as a batch writes both at once. When it is corrected, it also gets those keys with a count of 0 that the target had before the counter.
create or replace function pgtally.measure_times(
    counter pgtally.counter, keys text[], after_key text, last_key text, correcting boolean, max_drifts integer, out drifting_keys text[], out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off set work_mem = '64MB' as $$
declare
    moment constant timestamptz := clock_timestamp();
    space constant record := pgtally.key_space(counter);
    of_target constant text := format('(select %1$I as key, coalesce(%2$I, 0) as value from %3$s where %1$I is not null and %4$s)', counter.target_key, counter.target_column, counter.target_table,
        pgtally.key_filter(counter.target_key, space.key_type, space.key_collation, keys, after_key, last_key));
    ranking constant text := case when counter.ranked and not counter.own_target then pgtally.ranking_table(counter) end;
    drifts_query constant text := concat_ws(' union all ',
        case when pgtally.has_times(counter) then '(' || pgtally.time_drifts_query(counter, keys, after_key, last_key, moment) || ')' end,
        case when ranking is not null then format(
            'select 0, t.key::text, null::timestamptz, ''ranking'', t.value::numeric, coalesce(r.value, 0)::numeric, 0::numeric from %s t left join %s r on r.key = t.key where t.value <> coalesce(r.value, 0)',
            of_target, ranking) end);
    numbers integer[];
    starts timestamptz[];
    drifts numeric[];
begin
    if drifts_query <> '' then
        execute format(
            'with drifts(number, key, start, part, source, stored, pending) as materialized (%s)
            select array_agg(number), array_agg(key), array_agg(start), array_agg(source - stored - pending), (
                select jsonb_agg(jsonb_build_object(''key'', key, ''part'', part, ''source'', source::text, ''stored'', stored::text, ''carried'', ''0'', ''pending'', pending::text, ''drift'', (source - stored - pending)::text))
                from (select * from drifts order by key, number, start limit $1) first)
            from drifts', drifts_query)
        into numbers, drifting_keys, starts, drifts, drifting using max_drifts;
    end if;
    drifting := coalesce(drifting, '[]');
    if correcting and drifting_keys is not null then
        perform pgtally.correct_times(counter, numbers, drifting_keys, starts, drifts, moment);
    end if;
    if correcting and ranking is not null then
        -- After the consumer, as apply_batch(), in the same order.
        perform from pgtally.consumer c where c.consumer_id = counter.counter_id for update;
        perform pgtally.correct_ranking(counter, keys, after_key, last_key);
        execute format('insert into %s (key, value) select key, value from %s t order by 1 on conflict do nothing', ranking, of_target);
    end if;
end
$$;
