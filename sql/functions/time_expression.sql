-- time_expression(source): SQL for the event_time() of a row of the source.
--
-- A timestamp without time zone is in UTC, as most libraries write them: what the session's TimeZone says would differ from one writer to the next.
create or replace function pgtally.time_expression(source pgtally.source) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select format(
        case when exists (
            select from pg_attribute a where a.attrelid = source.source_table and a.attname = source.time_column and a.atttypid = 'timestamp'::regtype
        ) then 'pgtally.event_time(pg_catalog.timezone(''UTC'', %I))' else 'pgtally.event_time(%I)' end,
        source.time_column)
$$;
