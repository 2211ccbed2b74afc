-- correct_times(counter, numbers, keys, starts, drifts, moment): adds to time buckets and decayed scores, and to what waits for these, what time_drifts_query() has found missing.
--
-- A drift stays what it is while the application and the workers go on, so it may be corrected later than it was measured: here once the consumer is locked, which is waited for until the
-- batch in hand is through, since nobody else writes to these tables meanwhile. Whoever calls this has locked the counter's row before, as all do who lock both.
--
-- The landmark of a score becomes that of moment, also where it was a later one: beside that of a clock which was ahead, whatever is added now would be nothing.
create or replace function pgtally.correct_times(counter pgtally.counter, numbers integer[], keys text[], starts timestamptz[], drifts numeric[], moment timestamptz) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set datestyle = iso as $$
declare
    key_type constant text := pgtally.key_type(counter);
    recent constant text := format('pgtally.recent_%s', counter.counter_id);
    bucket pgtally.bucket;
    trend pgtally.trend;
    landmark integer;
begin
    perform from pgtally.consumer c where c.consumer_id = counter.counter_id for update;
    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id order by b.number loop
        execute format(
            'insert into pgtally.bucket_%1$s_%2$s as b (start, key, count, slot)
            select u.start, u.key::%3$s, u.drift, %4$s from unnest($1, $2, $3, $4) u(number, key, start, drift) where u.number = %2$s and u.start >= %5$L
            on conflict (start, key, slot) do update set count = b.count + excluded.count',
            counter.counter_id, bucket.number, key_type, pgtally.bucket_slot(bucket, 'u.start'), bucket.kept_since)
        using numbers, keys, starts, drifts;
    end loop;
    -- Those of a ranking have the number 0 as well, and no start.
    if exists (select from unnest(numbers, starts) u(number, start) where u.number = 0 and u.start is not null) then
        execute format('insert into pgtally.later_%s (time, delta, key) select u.start, u.drift, u.key::%s from unnest($1, $2, $3, $4) u(number, key, start, drift) where u.number = 0 and u.start is not null', counter.counter_id, key_type)
        using numbers, keys, starts, drifts;
    end if;
    for trend in select * from pgtally.trend t where t.counter_id = counter.counter_id order by t.number loop
        landmark := floor(extract(epoch from moment) / extract(epoch from trend.half_life));
        execute format('insert into %s (key) select u.key::%s from unnest($1, $2) u(number, key) where u.number = -%s on conflict do nothing', recent, key_type, trend.number)
        using numbers, keys;
        execute format(
            'update %1$s r set landmark_%2$s = $4, score_%2$s = pgtally.add_scores(r.score_%2$s * pgtally.power_of_two(r.landmark_%2$s - $4), $4, u.drift * pgtally.power_of_two($5), $4)
            from unnest($1, $2, $3) u(number, key, drift) where u.number = -%2$s and r.key = u.key::%3$s',
            recent, trend.number, key_type)
        using numbers, keys, drifts, landmark, ((extract(epoch from moment) - landmark * extract(epoch from trend.half_life)) / extract(epoch from trend.half_life))::double precision;
    end loop;
end
$$;
