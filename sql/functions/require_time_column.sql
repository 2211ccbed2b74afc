-- require_time_column(counter_name, source, time_column): makes sure that the column can say when a row of the source happened.
--
-- Errors: TL003 when there is no such column or it holds no such time.
create or replace function pgtally.require_time_column(counter_name text, source regclass, time_column name) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    given record;
begin
    select a.atttypid::regtype::text as type, a.attgenerated = 'v' as virtual into given
    from pg_attribute a where a.attrelid = source and a.attname = time_column and a.attnum > 0 and not a.attisdropped;
    if given.type is null then
        raise exception 'Counter "%": the table % has no column "%"', counter_name, source, time_column
            using errcode = 'TL003', hint = 'Name the column that says when a row happened, or leave it out.';
    elsif given.virtual or given.type not in ('timestamp with time zone', 'timestamp without time zone') then
        raise exception 'Counter "%": the column %.% is %, which cannot be the time of a row', counter_name, source, time_column,
            case when given.virtual then 'a virtual generated column' else 'of type ' || given.type end
            using errcode = 'TL003', hint = 'Use a column of type timestamptz, or timestamp (taken as UTC).';
    end if;
end
$$;
