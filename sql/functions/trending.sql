-- trending(counter_name, max_keys, half_life, scope): the keys with the greatest exponentially decayed scores, those first. Only scores above 0.
--
-- score: what has been added, as of now: each event weighs half as much after half_life, a quarter after twice that. half_life: one of the counter's definition (NULL: the first).
-- Includes what has been applied; see add_to_buckets(). scope: as top().
--
-- Errors: TL001 when there is no such counter; TL003 when max_keys is not from 1 to 10,000 or scope will not do; TL009 when the counter has no such half-life.
create or replace function pgtally.trending(
    counter_name text, max_keys integer default 10, half_life interval default null, scope jsonb default null
) returns table (key text, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso set extra_float_digits = 1 set jit = off as $$
#variable_conflict use_variable
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    trend constant pgtally.trend := (
        select t from pgtally.trend t where t.counter_id = counter.counter_id and (half_life is null or t.half_life = half_life) order by t.number limit 1);
    now constant double precision := extract(epoch from clock_timestamp()) / extract(epoch from trend.half_life);
    -- What is older weighs 0 (power_of_two).
    least_level constant integer := ceil(16 * (now - 490));
    recent constant text := format('pgtally.recent_%s', counter.counter_id);
    shown constant text := format('r.score_%1$s * pgtally.power_of_two(r.landmark_%1$s - %2$s::double precision)', trend.number, now);
    level constant text := format('r.level_%s', trend.number);
    -- Counted from now on, so that little is lost to the size of the number.
    logarithm constant text := format('(r.landmark_%1$s - %2$s + ln(r.score_%1$s) / ln(2::double precision))', trend.number, floor(now));
    found integer;
begin
    perform pgtally.require_limit(counter_name, max_keys);
    if trend.counter_id is null then
        raise exception 'Counter "%" keeps no scores%', counter_name, coalesce(' with the half-life ' || half_life, '')
            using errcode = 'TL009', hint = coalesce(
                'There are those with: ' || (select string_agg(t.half_life::text, ', ' order by t.number) from pgtally.trend t where t.counter_id = counter.counter_id),
                'Define it with half-lives (trending).');
    end if;
    return query select h.key, h.value::double precision
    from pgtally.head(counter, recent, shown, format('%s >= %s', level, greatest(trend.floor, least_level)), format('%s desc, %s desc', level, logarithm), max_keys, scope) h;
    -- The index may lack those below the floor: only few of a long list or a narrow scope.
    get diagnostics found = row_count;
    if found < max_keys and trend.floor > least_level then
        return query select h.key, h.value::double precision
        from pgtally.head(counter, recent, shown, format('(%1$s is null or %1$s < %2$s) and pgtally.score_level(r.score_%3$s, r.landmark_%3$s, %4$s) is not null', level, trend.floor, trend.number, least_level),
            logarithm || ' desc', max_keys - found, scope) h;
    end if;
end
$$;
