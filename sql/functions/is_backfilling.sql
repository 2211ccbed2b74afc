-- is_backfilling(counter_id): whether rows that were there before the counter are still to be counted.
create or replace function pgtally.is_backfilling(counter_id integer) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select exists (select from pgtally.reconciliation r where r.counter_id = $1 and r.reason = 'backfill')
$$;
