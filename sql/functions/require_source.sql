-- require_source(counter_name, source): raises TL003 unless the rows of the table can be counted exactly.
create or replace function pgtally.require_source(counter_name text, source regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    objection text;
begin
    select case
        when c.relkind not in ('r', 'p') then 'is not a table'
        when c.relpersistence = 't' then 'is temporary, so other sessions do not see its rows'
        when c.relpersistence = 'u' then 'is unlogged: a crash would empty it and leave the counts'
        when c.relispartition then 'is a partition; statements on the table it belongs to would not be seen'
        when exists (select from pg_inherits where inhrelid = c.oid) then 'inherits from another table; statements on that would not be seen'
        when c.relkind = 'r' and exists (select from pg_inherits where inhparent = c.oid) then 'has inheritance children'
        when exists (
            select from pg_partition_tree(c.oid) p join pg_class f on f.oid = p.relid where f.relkind = 'f'
        ) then 'has partitions that are foreign tables'
    end into objection
    from pg_class c where c.oid = source;
    if objection is not null then
        raise exception 'Counter "%": the rows of % cannot be counted: it %', counter_name, source, objection
            using errcode = 'TL003', hint = 'The source is an ordinary or partitioned table of this database.';
    end if;
end
$$;
