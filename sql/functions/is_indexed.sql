-- is_indexed(relation, column_name, key_collation): whether an index finds rows by a range of that column (for text: in that collation's order).
create or replace function pgtally.is_indexed(relation regclass, column_name name, key_collation regcollation) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select exists (
        select from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        join pg_opclass o on o.oid = i.indclass[0]
        join pg_am m on m.oid = o.opcmethod
        where i.indrelid = relation and a.attname = column_name and i.indisvalid and i.indpred is null
            and m.amname = 'btree' and o.opcdefault and i.indcollation[0] in (0, key_collation))
$$;
