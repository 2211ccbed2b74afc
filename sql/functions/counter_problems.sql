-- counter_problems(counter_name): what keeps the counter from being exact, or from going on; one text for each, with the remedy. See counter_findings().
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.counter_problems(counter_name text) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select array(select f.problem || ' ' || f.advice from pgtally.counter_findings(counter_name) f)
$$;
