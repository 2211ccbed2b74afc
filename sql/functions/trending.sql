-- trending(counter_name, max_keys, half_life, scope): the keys with the greatest exponentially decayed scores, those first. Only scores above 0.
--
-- score: what has been added, as of now: each event weighs half as much after half_life, a quarter after twice that. half_life: one of the counter's definition (NULL: the first).
-- Includes what has been applied; see add_to_buckets(). scope: as top().
--
-- Errors: TL001 when there is no such counter; TL003 when max_keys is not from 1 to 10,000 or scope will not do; TL009 when the counter has no such half-life.
create or replace function pgtally.trending(
    counter_name text, max_keys integer default 10, half_life interval default null, scope jsonb default null
) returns table (key text, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = iso set jit = off as $$
#variable_conflict use_variable
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    trend constant pgtally.trend := (
        select t from pgtally.trend t where t.counter_id = counter.counter_id and (half_life is null or t.half_life = half_life) order by t.number limit 1);
begin
    perform pgtally.require_limit(counter_name, max_keys);
    if trend.counter_id is null then
        raise exception 'Counter "%" keeps no scores%', counter_name, coalesce(format(' with the half-life %s', half_life), '')
            using errcode = 'TL009', hint = coalesce(
                'There are those with: ' || (select string_agg(t.half_life::text, ', ' order by t.number) from pgtally.trend t where t.counter_id = counter.counter_id),
                'Define it with half-lives (trending).');
    end if;
    return query select h.key, h.value::double precision from pgtally.head(
        counter, format('pgtally.recent_%s', counter.counter_id), format('level_%s', trend.number),
        format('r.score_%1$s * pgtally.power_of_two(r.landmark_%1$s - (extract(epoch from %2$L::timestamptz) / %3$s)::double precision)',
            trend.number, clock_timestamp(), extract(epoch from trend.half_life)),
        format('r.landmark_%1$s + ln(r.score_%1$s) / ln(2::double precision)', trend.number), max_keys, scope,
        -- What is older weighs 0 (power_of_two).
        ceil(16 * (extract(epoch from clock_timestamp()) / extract(epoch from trend.half_life) - 490))::integer) h;
end
$$;
