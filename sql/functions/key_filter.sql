-- key_filter(column_name, key_type, key_collation, keys, after_key, last_key): the SQL condition for a column to be one of `keys`, or
-- where that is NULL, to be greater than after_key and not greater than last_key (NULL: no such bound).
--
-- On the bare column, so that its index can be used. Text is ordered by one collation everywhere, or the ranges of two
-- tables would not be the same keys.
create or replace function pgtally.key_filter(
    column_name name, key_type text, key_collation regcollation, keys text[], after_key text, last_key text
) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    collation_clause constant text := case when key_type = 'text' then format(' collate %s', key_collation) else '' end;
    filter text := 'true';
begin
    if keys is not null then
        return format('%I = any (%L::%s[])', column_name, keys, key_type);
    end if;
    if after_key is not null then
        filter := filter || format(' and %I > %L::%s%s', column_name, after_key, key_type, collation_clause);
    end if;
    if last_key is not null then
        filter := filter || format(' and %I <= %L::%s%s', column_name, last_key, key_type, collation_clause);
    end if;
    return filter;
end
$$;
