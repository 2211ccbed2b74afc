-- estimated_keys(counter): how many rows the target has, by the statistics; NULL when there are none.
create or replace function pgtally.estimated_keys(counter pgtally.counter) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select nullif(sum(greatest(c.reltuples, 0)), 0)::bigint
    from pg_class c
    where c.relkind = 'r' and (c.oid = counter.target_table or c.oid in (select relid from pg_partition_tree(counter.target_table)))
$$;
