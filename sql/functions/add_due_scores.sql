-- add_due_scores(counter, until): adds to the decayed scores what add_to_buckets() has put aside because it lay ahead, as far as its time has come.
--
-- The caller has locked the consumer.
create or replace function pgtally.add_due_scores(counter pgtally.counter, until timestamptz) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    numbers integer[];
    keys text[];
    scores numeric[];
begin
    execute format(
        'with due as (
            delete from pgtally.later_%s where time <= $1 returning key, time, delta
        )
        select array_agg(number), array_agg(key), array_agg(score) from (
            select -t.number as number, d.key::text as key,
                sum(d.delta * pgtally.power_of_two((extract(epoch from d.time - $1) / extract(epoch from t.half_life))::double precision))::numeric as score
            from due d, pgtally.trend t where t.counter_id = $2 group by 1, 2
        ) summed',
        counter.counter_id)
    into numbers, keys, scores using until, counter.counter_id;
    if numbers is not null then
        perform pgtally.correct_times(counter, numbers, keys, null, scores, until);
    end if;
end
$$;
