-- require_against(counter, against): raises unless the counts can be held against that column of the target, or, where it is NULL, against the
-- source.
--
-- Errors: TL003 when the target has no such column or it is no whole number; TL009 when there is no source.
create or replace function pgtally.require_against(counter pgtally.counter, against name) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if against is null then
        perform pgtally.require_source_rows(counter, true);
    elsif not exists (
        select from pg_attribute a
        where a.attrelid = counter.target_table and a.attname = against and a.attnum > 0 and not a.attisdropped
            and a.atttypid in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype)
    ) then
        raise exception 'Counter "%": % has no column "%" that holds a number', counter.name, counter.target_table, against
            using errcode = 'TL003', hint = 'Name the column of the target that the counts are to be held against.';
    end if;
end
$$;
