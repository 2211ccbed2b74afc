-- sync_triggers(queue_name): puts the triggers of a queue's source on its table and on partitions that have none yet, and takes
-- them off tables that are partitions no longer.
--
-- A partition that is created later needs them for the statements on itself; those on the whole table are counted anyway.
-- Workers call this all the time, as create_counter() does. Returns the number of tables changed; takes locks, and a
-- transaction id, only if there are any. A source that was dropped is left alone.
--
-- Rows that a partition brings along or takes away fire no trigger: then the queue's counters get a reconciliation to do, which
-- counter_problems() shows. Rows that came through the table since the partition belongs to it were counted, and do not matter.
--
-- Runs with its owner's rights: a worker needs EXECUTE on it and nothing on the tables. It puts no triggers but pgtally's own on no tables but the source and its partitions.
--
-- Errors: TL001 when there is no such queue; 42501 when the counter is being created and a partition is another role's.
create or replace function pgtally.sync_triggers(queue_name text) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set row_security = off as $$
<<sync_triggers>>
declare
    id constant integer := pgtally.queue_id(queue_name);
    -- One table can be the source of two installations.
    prefix constant text := (
        select relnamespace::regnamespace::text || '_' || id from pg_class where oid = 'pgtally.queue'::regclass);
    source constant pgtally.source := (select s from pgtally.source s where s.queue_id = id);
    source_table constant oid := source.source_table;
    known_tables regclass[] := source.tables;
    tables regclass[];
    locked boolean := false;
    changed integer := 0;
    relation record;
    trigger_name name;
begin
    if exists (select from pg_class where oid = source_table) and not exists (
        select from pg_attribute a where a.attrelid = source_table and a.attname = source.source_key and not a.attisdropped)
    then
        -- Its key column was renamed, or it is another table altogether: a dump keeps the number of one that was dropped.
        return 0;
    end if;

    loop
        tables := array(
            select c.oid::regclass from pg_class c
            where c.oid = source_table or c.oid in (select relid from pg_partition_tree(source_table)) order by c.oid);
        exit when locked or tables = known_tables or tables = '{}';
        -- Another worker may be at it, and its user have reconciled by now: so once more, as it is when that has ended.
        select s.tables into known_tables from pgtally.source s where s.queue_id = id for update;
        locked := true;
    end loop;
    if tables <> known_tables and tables <> '{}' then
        -- Before any trigger is made, whose lock writers would have to wait for. When the counter is created nothing is known.
        if known_tables <> '{}' and pgtally.partitions_brought_rows(known_tables, tables) then
            insert into pgtally.reconciliation as r (counter_id, reason)
            select k.counter_id, 'partitions' from pgtally.counter k join pgtally.consumer c on c.consumer_id = k.counter_id where c.queue_id = id
            -- Under another number: whoever is at an unfinished one ends.
            on conflict (counter_id) do update set reconciliation_id = default, after_key = null, began_at = default,
                reason = case r.reason when 'backfill' then r.reason else excluded.reason end;
        end if;
        update pgtally.source s set tables = sync_triggers.tables where s.queue_id = id;
    end if;
    for relation in
        select c.oid, c.oid::regclass as name, c.relkind, wanted.oid is not null as wanted
        from (
            select source_table as oid where source_table is not null
            union select relid from pg_partition_tree(source_table)
        ) wanted
        full join (
            select distinct t.tgrelid as oid from pg_trigger t
            where t.tgfoid = to_regproc(format('pgtally.source_%s_insert', id))
        ) present using (oid)
        join pg_class c using (oid)
        where wanted.oid is null or present.oid is null
    loop
        begin
            if relation.wanted then
                execute format(
                    'create trigger %4$I after insert on %2$s referencing new table as new_rows
                        for each statement execute function pgtally.source_%1$s_insert(%3$L);
                    create trigger %5$I after update on %2$s referencing old table as old_rows new table as new_rows
                        for each statement execute function pgtally.source_%1$s_update(%3$L);
                    create trigger %6$I after delete on %2$s referencing old table as old_rows
                        for each statement execute function pgtally.source_%1$s_delete(%3$L)',
                    id, relation.name, queue_name, prefix || '_insert', prefix || '_update', prefix || '_delete');
                if relation.relkind = 'r' then
                    execute format(
                        'create trigger %4$I before truncate on %2$s
                            for each statement execute function pgtally.source_%1$s_truncate(%3$L)',
                        id, relation.name, queue_name, prefix || '_truncate');
                end if;
            else
                for trigger_name in select t.tgname from pg_trigger t where t.tgrelid = relation.oid and t.tgname like prefix || '\_%' loop
                    execute format('drop trigger %I on %s', trigger_name, relation.name);
                end loop;
            end if;
            changed := changed + 1;
        exception when insufficient_privilege then
            -- A partition that belongs to another role is no reason to leave out the rest; counter_problems() shows it.
            if known_tables = '{}' then
                raise;
            end if;
        end;
    end loop;
    return changed;
end
$$;
