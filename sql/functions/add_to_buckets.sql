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
-- For lists, an index has the levels of the scores (score_level). A batch of more than 20,000 keys leaves out those of it that come after the first 20,000, twice the longest list, and sets the floor in
-- pgtally.trend to where those end; so most of its rows are updated without writing to the index. As the floor only rises, a row that is not in the index has a score below it: trending() looks there when it has not
-- found enough above.
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
    many constant boolean := cardinality(keys) > 20000;
    scored constant boolean := exists (select from pgtally.trend t where t.counter_id = counter.counter_id);
    recent constant text := format('pgtally.recent_%s', counter.counter_id);
    bucket pgtally.bucket;
    trend pgtally.trend;
    -- The time of the latest event, but for those that lie ahead; and of the first and the last of all.
    latest timestamptz;
    earliest timestamptz;
    furthest timestamptz;
    starts text;
    current_start timestamptz;
    current_starts timestamptz[];
    landmark integer;
    sums text;
    merges text;
    columns text[];
    merged text[];
    finished text[];
    any_finished text;
    late text := 'e.time is null';
    floors text[];
    new_floors integer[];
    finished_numbers integer[];
    finished_starts timestamptz[];
    finished_keys keys%type;
    finished_counts bigint[];
begin
    select coalesce(max(t) filter (where t <= ahead), '-infinity'), min(t), max(t) into latest, earliest, furthest from unnest(times) t;
    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id order by b.number loop
        starts := pgtally.bucket_start(bucket.width, bucket.time_zone, 'e.time');
        current_start := latest;
        if isfinite(latest) then
            execute 'select ' || pgtally.bucket_start(bucket.width, bucket.time_zone, '$1') into current_start using latest;
        end if;
        current_starts := current_starts || current_start;
        sums := concat(sums, format(', coalesce(pgtally.sum_delta(e.delta) filter (where e.time >= %2$L and e.time <= %3$L), 0) as count_%1$s', bucket.number, current_start, latest));
        merges := concat(merges, format(
            ', greatest(r.start_%1$s, %2$L) as start_%1$s, case when r.start_%1$s >= %2$L then r.count_%1$s else 0 end + case when r.start_%1$s > %2$L then 0 else s.count_%1$s end as count_%1$s,
            least(r.start_%1$s, %2$L) as finished_start_%1$s, case when r.start_%1$s < %2$L then r.count_%1$s when r.start_%1$s > %2$L then s.count_%1$s else 0 end as finished_%1$s',
            bucket.number, current_start));
        columns := columns || array[format('start_%s', bucket.number), format('count_%s', bucket.number)];
        merged := merged || array[format('m.start_%s', bucket.number), format('m.count_%s', bucket.number)];
        finished := finished || format('(%1$s, m.finished_start_%1$s, m.finished_%1$s)', bucket.number);
        any_finished := concat(any_finished || ' or ', format('m.finished_%s <> 0', bucket.number));
        late := late || case when isfinite(bucket.kept_since) then format(' or %s < %L', starts, bucket.kept_since) else '' end;
    end loop;
    for trend in select * from pgtally.trend t where t.counter_id = counter.counter_id order by t.number loop
        landmark := floor(extract(epoch from now) / extract(epoch from trend.half_life));
        sums := concat(sums, format(
            ', coalesce(sum(e.delta * pgtally.power_of_two((date_part(''epoch'', e.time) - %3$s) / %2$s)) filter (where e.time <= %4$L), 0) as score_%1$s',
            trend.number, extract(epoch from trend.half_life), landmark * extract(epoch from trend.half_life), latest));
        merges := concat(merges, format(
            ', pgtally.add_scores(coalesce(r.score_%1$s, 0), coalesce(r.landmark_%1$s, %2$s), s.score_%1$s, %2$s) as score_%1$s, greatest(r.landmark_%1$s, %2$s) as landmark_%1$s',
            trend.number, landmark));
        columns := columns || array[format('score_%s', trend.number), format('landmark_%s', trend.number), format('floor_%s', trend.number)];
        merged := merged || array[format('m.score_%s', trend.number), format('m.landmark_%s', trend.number), format('f.floors[%s]', trend.number)];
        floors := floors || case when many then format(
            'coalesce((select pgtally.score_level(m.score_%1$s, m.landmark_%1$s, %2$s) as level from matched m order by level desc nulls last offset 19999 limit 1), %2$s)', trend.number, trend.floor)
            else trend.floor::text end;
    end loop;

    if scored then
        perform pgtally.add_due_scores(counter, ahead);
    end if;
    execute format(
        'with event as materialized (
            select * from unnest($1, $2, $3, $4) e(key, time, delta, events)
        ), summed as (
            select e.key %1$s from event e group by e.key order by e.key
        ), matched as materialized (
            select s.key, r.ctid as row %2$s from summed s left join %3$s r on r.key = s.key
        ), floor as materialized (
            select array[%4$s]::integer[] as floors
        ), changed as (
            update %3$s r set (%5$s) = row (%6$s) from matched m, floor f where r.ctid = m.row
        ), inserted as (
            insert into %3$s (key, %5$s) select m.key, %6$s from matched m, floor f where m.row is null
        )
        select l.*, f.floors, n.*
        from floor f,
            (select coalesce(pgtally.sum_delta(e.events) filter (where %8$s), 0), coalesce(pgtally.sum_delta(e.events) filter (where e.time > %9$L), 0) from event e) l,
            (select coalesce(array_agg(number), ''{}''), array_agg(start), array_agg(key), array_agg(count) from (%7$s) c where count <> 0) n',
        sums, merges, recent, array_to_string(floors, ', '), array_to_string(columns, ', '), array_to_string(merged, ', '),
        case when finished is null then 'select null::integer as number, null::timestamptz as start, key, 0::bigint as count from event where false' else format(
            'select f.*, m.key from matched m, lateral (values %s) f(number, start, count) where %s', array_to_string(finished, ', '), any_finished) end,
        late, ahead)
    into late_events, future_events, new_floors, finished_numbers, finished_starts, finished_keys, finished_counts using keys, times, deltas, events;

    if many then
        update pgtally.trend t set floor = new_floors[t.number] where t.counter_id = counter.counter_id and t.floor < new_floors[t.number];
    end if;
    if scored and future_events > 0 then
        execute format('insert into pgtally.later_%s (time, delta, key) select u.time, u.delta, u.key from unnest($1, $2, $3) u(key, time, delta) where u.time > $4', counter.counter_id)
        using keys, times, deltas, ahead;
    end if;

    -- Few batches have any; to plan this for all widths took longer than a small batch.
    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id order by b.number loop
        continue when earliest >= current_starts[bucket.number] and furthest <= latest and bucket.number <> all (finished_numbers);
        execute format(
            'insert into pgtally.bucket_%1$s_%2$s as b (start, key, count, slot)
            select m.start, m.key, m.count, %3$s
            from (
                select c.start, c.key, pgtally.sum_delta(c.count) as count
                from (
                    select %4$s as start, e.key, e.delta as count from unnest($1, $2, $3) e(key, time, delta) where e.time < %5$L or e.time > %6$L
                    union all
                    select f.start, f.key, f.count from unnest($4, $5, $6, $7) f(number, start, key, count) where f.number = %2$s
                ) c
                where c.start >= %7$L group by c.start, c.key having pgtally.sum_delta(c.count) <> 0
            ) m
            order by m.start, m.key
            on conflict (start, key, slot) do update set count = b.count + excluded.count',
            counter.counter_id, bucket.number, pgtally.bucket_slot(bucket, 'm.start'), pgtally.bucket_start(bucket.width, bucket.time_zone, 'e.time'), current_starts[bucket.number], latest, bucket.kept_since)
        using keys, times, deltas, finished_numbers, finished_starts, finished_keys, finished_counts;
    end loop;
end
$$;
