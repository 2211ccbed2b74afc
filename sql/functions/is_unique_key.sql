-- is_unique_key(relation, key): whether a unique index makes sure that a value of that column means one row at most.
create or replace function pgtally.is_unique_key(relation regclass, key name) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select exists (
        select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indrelid = relation and a.attname = key and i.indnkeyatts = 1
            and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null)
$$;
