-- has_times(counter): whether the counter has time buckets or decayed scores, for which it matters when an event happened.
create or replace function pgtally.has_times(counter pgtally.counter) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select exists (select from pgtally.bucket b where b.counter_id = counter.counter_id) or exists (select from pgtally.trend t where t.counter_id = counter.counter_id)
$$;
