-- counter_findings(counter_name): what keeps the counter from being exact, or from going on: one row for each, with a code for programs, and what to do about it.
--
-- Looks at definitions and triggers only; what has gone wrong with rows is found by an audit. Waits for nobody: of a table that
-- is locked, or that the caller may not read, it says only what the catalog knows.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.counter_findings(counter_name text) returns table (code text, problem text, advice text)
language plpgsql stable set search_path = pg_catalog, pg_temp set lock_timeout = '10ms' as $$
declare
    whole_numbers constant text[] := array['smallint', 'integer', 'bigint'];
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
    queue constant pgtally.queue := (select q from pgtally.queue q where q.queue_id = consumer.queue_id);
    own_cluster constant bigint := pgtally.system_identifier();
    source constant pgtally.source := (select s from pgtally.source s where s.queue_id = consumer.queue_id);
    unfinished constant pgtally.reconciliation := (select r from pgtally.reconciliation r where r.counter_id = counter.counter_id);
    reconcile constant text := format('pgtally reconcile %s', quote_ident(counter_name));
    change text;
    key_type text;
    tables text;
begin
    -- Its own or that of another consumer, whose events there are then, too.
    if exists (select from pgtally.consumer c where c.queue_id = queue.queue_id and c.system_identifier <> own_cluster) then
        return query values ('OTHER_CLUSTER', 'Its position is another database cluster''s: the database was restored or upgraded. Events are kept.', 'Run: pgtally rebase');
    end if;
    if unfinished.after_key is not null then
        return query values ('RECONCILE_UNFINISHED', format('A %s is under way or was interrupted, and is done up to the key %s.',
            case unfinished.reason when 'backfill' then 'backfill' else 'reconciliation' end, unfinished.after_key), format('To go on with it, run: %s', reconcile));
    elsif unfinished.reason = 'backfill' then
        return query values ('BACKFILL_MISSING', 'The rows that were there before the counter are not counted yet.', format('Run: %s', reconcile));
    elsif unfinished.reason = 'partitions' then
        return query values ('PARTITIONS_NOT_COUNTED', format('Partitions of %s came or went with rows in them, which were not counted.', source.source_table), format('Run: %s', reconcile));
    end if;

    if source.source_table is not null and not exists (select from pg_class where oid = source.source_table) then
        return query values ('SOURCE_DROPPED', 'Detached: its source table was dropped.', 'Drop the counter; if there is a new table, create it again for that.');
    elsif source.source_table is not null then
        begin
            key_type := pgtally.require_key_column(counter_name, source.source_table, source.source_key);
            execute format('select (%s)::int8 from %s where %s limit 0',
                coalesce(source.sum_expression, '1'), source.source_table, coalesce(source.where_condition, 'true'));
            if source.time_column is not null then
                perform pgtally.require_time_column(counter_name, source.source_table, source.time_column);
            end if;
        exception
            when lock_not_available or insufficient_privilege then null;
            -- Whatever it is: a column, type or function that is gone, renamed or another.
            when others then change := sqlerrm;
        end;
        if change is not null then
            return query values ('SOURCE_CHANGED', format('Its source %s has changed, so that writes to it fail: %s.', source.source_table, change),
                'Drop the counter and create it again.');
        elsif key_type <> queue.key_type and array_position(whole_numbers, key_type) < array_position(whole_numbers, queue.key_type) is not true then
            return query values ('SOURCE_CHANGED', format('The keys of its source %s have become %s, and its queue holds %s: writes with other keys fail.',
                source.source_table, key_type, queue.key_type), 'Drop the counter and create it again.');
        end if;
        select string_agg(c.oid::regclass::text, ', ' order by c.oid) into tables
        from unnest(source.tables) t(oid) join pg_class c using (oid)
        where (
            select count(*) from pg_trigger g join pg_proc p on p.oid = g.tgfoid
            where g.tgrelid = c.oid and g.tgenabled in ('O', 'A') and p.proname like format('source\_%s\_%%', source.queue_id)
                and p.pronamespace = (select relnamespace from pg_class where oid = 'pgtally.queue'::regclass)
        ) < case c.relkind when 'r' then 4 else 3 end;
        if tables is not null then
            return query values ('TRIGGERS_SILENT', format('Triggers are missing or disabled on %s: what is written there is not counted.', tables),
                format('Enable them, or drop the counter and create it again; then run: %s', reconcile));
        end if;
        select string_agg(distinct g.tgrelid::regclass::text, ', ') into tables
        from pg_trigger g join pg_proc p on p.oid = g.tgfoid
        where p.proname like format('source\_%s\_%%', source.queue_id) and p.pronamespace = (select relnamespace from pg_class where oid = 'pgtally.queue'::regclass)
            and g.tgrelid <> all (source.tables);
        if tables is not null then
            return query values ('TRIGGERS_LEFT', format('Not of its source any more, but with its triggers: %s. What is written there is counted.', tables),
                format('Drop the triggers; then run: %s', reconcile));
        end if;
    end if;

    if not exists (select from pg_class where oid = counter.target_table) then
        return query values ('TARGET_DROPPED', 'Detached: its target table was dropped.', 'Drop the counter; if there is a new table, create it again for that.');
    else
        begin
            key_type := pgtally.require_key_column(counter_name, counter.target_table, counter.target_key);
            perform pgtally.require_target(counter_name, counter.target_table, counter.target_key, counter.target_column);
            if key_type <> queue.key_type and not (key_type = any (whole_numbers) and queue.key_type = any (whole_numbers)) then
                raise exception 'Counter "%": the keys of % are %, and those of its queue %', counter_name, counter.target_table, key_type, queue.key_type
                    using errcode = 'TL003';
            end if;
        exception when sqlstate 'TL003' then
            return query values (case when pgtally.is_unique_key(counter.target_table, counter.target_key) or 2 <> (
                    select count(*) from pg_attribute a
                    where a.attrelid = counter.target_table and a.attname in (counter.target_key, counter.target_column) and not a.attisdropped)
                then 'TARGET_CHANGED' else 'TARGET_KEY_NOT_UNIQUE' end,
                format('Its target has changed, and what cannot be added waits: %s.', sqlerrm), 'Mend that, or drop the counter and create it again.');
        end;
    end if;
end
$$;
