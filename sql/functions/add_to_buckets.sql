-- add_to_buckets(counter, keys, times, deltas, events): files what a batch has under keys and times (event_moment): in the counter's time buckets and decayed scores.
--
-- Each key has one row in recent_<counter_id>, with the start and the count of the latest bucket of each width, and its scores: most events are new, so one update that
-- writes no index entry does for all widths and scores, where a row of each bucket took three times as long. When a key's next bucket begins, the finished one moves to the table
-- bucket_<counter_id>_<number>; what belongs into an older bucket, or the future, goes there at once. So a bucket's count is the sum of both (bucket_rows).
--
-- Scores are those of forward decay (Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay: A Practical Time Decay Model for Streaming Systems", 2009): an event at the time t weighs
-- 2^((t - L) / half-life), where L is a landmark; as time passes all scores shrink by the same factor, so their order stays, and nothing is to be swept. Each row has a landmark of its own, in whole
-- half-lives since 1970, and moves it to that of now when it is written, long before a double overflows. An event that is taken back weighs as it did, having the same time.
--
-- late_events: those that a width keeps no longer, or with no time. future_events: those more than five minutes ahead; they are in buckets, and in no score, as one
-- would be the highest until its time has come: till then it waits in later_<counter_id>, and the first batch after that puts it in (add_due_scores). Neither stops anything, and both count in the target.
--
-- The caller has locked the consumer: nobody else writes to these tables, so rows are where they were when the statement began.
create or replace function pgtally.add_to_buckets(
    counter pgtally.counter, keys anyarray, times timestamptz[], deltas bigint[], events bigint[], out late_events bigint, out future_events bigint
) language plpgsql volatile set search_path = pg_catalog, pg_temp set datestyle = iso as $$
declare
    now constant timestamptz := clock_timestamp();
    ahead constant timestamptz := now + interval '5 minutes';
    latest constant timestamptz := coalesce((select max(t) from unnest(times) t where t <= ahead), '-infinity');
    scored constant boolean := exists (select from pgtally.trend t where t.counter_id = counter.counter_id);
    recent constant text := format('pgtally.recent_%s', counter.counter_id);
    bucket pgtally.bucket;
    trend pgtally.trend;
    current_start timestamptz;
    half_life text;
    landmark integer;
    start text;
    columns text := 'key';
    sums text := 'e.key';
    matches text := 's.key, r.ctid as row';
    changes text[];
    moves text[];
    late text := 'e.time is null';
    moved_numbers integer[];
    moved_starts timestamptz[];
    moved_keys keys%type;
    moved_counts bigint[];
begin
    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id order by b.number loop
        start := pgtally.bucket_start(bucket.width, bucket.time_zone, 'e.time');
        current_start := latest;
        if isfinite(latest) then
            execute 'select ' || pgtally.bucket_start(bucket.width, bucket.time_zone, '$1') into current_start using latest;
        end if;
        columns := columns || format(', start_%1$s, count_%1$s', bucket.number);
        sums := sums || format(', %2$L::timestamptz as start_%1$s, coalesce(pgtally.sum_delta(e.delta) filter (where e.time >= %2$L and e.time <= %3$L), 0) as count_%1$s',
            bucket.number, current_start, latest);
        matches := matches || format(', s.start_%1$s, s.count_%1$s, r.start_%1$s as old_start_%1$s, r.count_%1$s as old_count_%1$s', bucket.number);
        changes := changes || format(
            'start_%1$s = greatest(r.start_%1$s, m.start_%1$s), count_%1$s = case when r.start_%1$s >= m.start_%1$s then r.count_%1$s else 0 end + case when r.start_%1$s <= m.start_%1$s then m.count_%1$s else 0 end',
            bucket.number);
        moves := moves || format(
            'select %1$s as number, %2$s as start, e.key, e.delta as count from event e where e.time < %3$L or e.time > %4$L
            union all
            select %1$s, least(old_start_%1$s, start_%1$s), key, case when old_start_%1$s < start_%1$s then old_count_%1$s else count_%1$s end from matched where old_start_%1$s <> start_%1$s',
            bucket.number, start, current_start, latest);
        late := late || case when isfinite(bucket.kept_since) then format(' or %s < %L', start, bucket.kept_since) else '' end;
    end loop;
    for trend in select * from pgtally.trend t where t.counter_id = counter.counter_id order by t.number loop
        half_life := extract(epoch from trend.half_life)::text;
        landmark := floor(extract(epoch from now) / extract(epoch from trend.half_life));
        columns := columns || format(', score_%1$s, landmark_%1$s', trend.number);
        sums := sums || format(
            ', coalesce(sum(e.delta * pgtally.power_of_two((extract(epoch from e.time) / %2$s - %3$s)::double precision)) filter (where e.time <= %4$L), 0) as score_%1$s, %3$s as landmark_%1$s',
            trend.number, half_life, landmark, latest);
        matches := matches || format(', s.score_%1$s, s.landmark_%1$s', trend.number);
        changes := changes || format(
            'score_%1$s = pgtally.add_scores(r.score_%1$s, r.landmark_%1$s, m.score_%1$s, m.landmark_%1$s), landmark_%1$s = greatest(r.landmark_%1$s, m.landmark_%1$s)', trend.number);
    end loop;

    if scored then
        perform pgtally.add_due_scores(counter, ahead);
    end if;
    execute format(
        'with event as materialized (
            select * from unnest($1, $2, $3, $4) e(key, time, delta, events)
        ), summed as (
            select %1$s from event e group by e.key order by e.key
        ), matched as materialized (
            select %2$s from summed s left join %3$s r on r.key = s.key
        ), changed as (
            update %3$s r set %4$s from matched m where r.ctid = m.row
        ), inserted as (
            insert into %3$s (%5$s) select %5$s from matched where row is null
        ), moved as (
            %6$s
        )
        select (select coalesce(pgtally.sum_delta(e.events) filter (where %7$s), 0) from event e), (select coalesce(pgtally.sum_delta(e.events) filter (where e.time > %8$L), 0) from event e),
            array_agg(number), array_agg(start), array_agg(key), array_agg(count) from moved where count <> 0',
        sums, matches, recent, array_to_string(changes, ', '), columns,
        coalesce(array_to_string(moves, ' union all '), 'select null::integer as number, null::timestamptz as start, key, 0 as count from event'), late, ahead)
    into late_events, future_events, moved_numbers, moved_starts, moved_keys, moved_counts using keys, times, deltas, events;

    if scored and future_events > 0 then
        execute format('insert into pgtally.later_%s (time, delta, key) select u.time, u.delta, u.key from unnest($1, $2, $3) u(key, time, delta) where u.time > $4', counter.counter_id)
        using keys, times, deltas, ahead;
    end if;

    -- Few batches have any; to plan this for all widths took longer than a small batch.
    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id and b.number = any (moved_numbers) order by b.number loop
        execute format(
            'insert into pgtally.bucket_%1$s_%2$s as b (start, key, count, slot)
            select m.start, m.key, m.count, %3$s
            from (
                select u.start, u.key, pgtally.sum_delta(u.count) as count
                from unnest($1, $2, $3, $4) u(number, start, key, count) where u.number = %2$s and u.start >= %4$L group by u.start, u.key
            ) m
            order by m.start, m.key
            on conflict (start, key, slot) do update set count = b.count + excluded.count',
            counter.counter_id, bucket.number, pgtally.bucket_slot(bucket, 'm.start'), bucket.kept_since)
        using moved_numbers, moved_starts, moved_keys, moved_counts;
    end loop;
end
$$;
