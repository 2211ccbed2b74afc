-- require_data_columns(counter_name, source, columns): makes sure that the source has these columns.
--
-- Errors: TL003 when it has not, when one is given twice, or none.
create or replace function pgtally.require_data_columns(counter_name text, source regclass, columns name[]) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    missing constant name := (
        select c from unnest(columns) c
        where not exists (select from pg_attribute a where a.attrelid = source and a.attname = c and a.attnum > 0 and not a.attisdropped) limit 1);
begin
    if missing is not null then
        raise exception 'Counter "%": % has no column "%"', counter_name, source, missing
            using errcode = 'TL003', hint = 'Name columns of the source.';
    elsif cardinality(columns) = 0 or cardinality(columns) > (select count(distinct c) from unnest(columns) c) then
        raise exception 'Counter "%": the columns for data are none, or one of them is given twice', counter_name
            using errcode = 'TL003', hint = 'Name each column once, or leave them out.';
    end if;
end
$$;
