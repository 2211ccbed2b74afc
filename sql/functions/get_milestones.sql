-- get_milestones(counter_name, of_key): which thresholds the counter's keys have reached, or that key, in the order in which they were recorded.
--
-- value: what was stored then, or what a reconciliation has found; several thresholds have one value where the count jumped over them.
--
-- Errors: TL001 when there is no such counter; 22P02 when the key is not of the queue's type.
create or replace function pgtally.get_milestones(counter_name text, of_key text default null)
returns table (key text, threshold bigint, value bigint, reached_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    -- As it was recorded: a uuid has several spellings.
    execute format('select $1::%s::text', pgtally.key_type(counter)) into of_key using of_key;
    return query select m.key, m.threshold, m.value, m.reached_at from pgtally.milestone m
    where m.counter_id = counter.counter_id and (of_key is null or m.key = of_key)
    order by m.reached_at, m.key, m.threshold;
end
$$;
