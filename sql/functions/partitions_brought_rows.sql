-- partitions_brought_rows(before, now): whether partitions that have come or gone between these two states of a source had rows in them.
--
-- Of one that has come, the rows older than its attachment: later ones came through the table, whose triggers saw them. (One transaction's are taken
-- for older.) Of one that was dropped, or that the caller may not read, nothing is known, so it counts as one that had.
create or replace function pgtally.partitions_brought_rows(before regclass[], now regclass[]) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    partition record;
    found_row boolean;
begin
    for partition in
        select t.oid, c.relkind, t.oid = any (now) as came
        from (select unnest(before || now)::oid as oid) t left join pg_class c on c.oid = t.oid
        where (t.oid = any (before)) <> (t.oid = any (now))
    loop
        if partition.relkind is null then
            return true;
        elsif partition.relkind = 'r' and not has_table_privilege(partition.oid, 'select') then
            return true;
        elsif partition.relkind = 'r' then
            execute format('select exists (select from only %s %s)', partition.oid::regclass,
                case when partition.came then 'where age(xmin) >= $1' else '' end)
            into found_row
            using (select min(age(i.xmin)) from pg_inherits i where i.inhrelid in (select relid from pg_partition_ancestors(partition.oid)));
            if found_row then
                return true;
            end if;
        end if;
    end loop;
    return false;
end
$$;
