-- counter_problems(counter_name): what keeps the counter from being exact, or from going on; one text for each, with the remedy.
--
-- Looks at definitions and triggers only; what has gone wrong with rows is found by an audit.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.counter_problems(counter_name text) returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
    source constant pgtally.source := (select s from pgtally.source s where s.queue_id = consumer.queue_id);
    unfinished constant pgtally.reconciliation := (select r from pgtally.reconciliation r where r.counter_id = counter.counter_id);
    reconcile constant text := format('pgtally reconcile %s', quote_ident(counter_name));
    problems text[] := '{}';
    silent_tables text;
begin
    if consumer.system_identifier <> pgtally.system_identifier() then
        problems := array_append(problems, 'Its position is another database cluster''s: the database was restored or upgraded. Events are kept. Run: pgtally rebase');
    end if;
    if unfinished.after_key is not null then
        problems := array_append(problems, format('A %s is under way or was interrupted, and is done up to the key %s. To go on with it, run: %s',
            case unfinished.reason when 'backfill' then 'backfill' else 'reconciliation' end, unfinished.after_key, reconcile));
    elsif unfinished.reason = 'backfill' then
        problems := array_append(problems, format('The rows that were there before the counter are not counted yet. Run: %s', reconcile));
    elsif unfinished.reason = 'partitions' then
        problems := array_append(problems, format('Partitions of %s came or went with rows in them, which were not counted. Run: %s', source.source_table, reconcile));
    end if;

    if source.source_table is not null and not exists (select from pg_class where oid = source.source_table) then
        problems := array_append(problems, 'Detached: its source table was dropped. Drop the counter; if there is a new table, create it again for that.');
    elsif source.source_table is not null then
        begin
            execute format('select %I, %s from %s where %s limit 0',
                source.source_key, coalesce(source.sum_expression, '1'), source.source_table, coalesce(source.where_condition, 'true'));
        exception when undefined_column or undefined_function or datatype_mismatch then
            problems := array_append(problems, format('Its source %s has changed, so that writes to it fail: %s. Drop the counter and create it again.', source.source_table, sqlerrm));
        end;
        select string_agg(c.oid::regclass::text, ', ' order by c.oid) into silent_tables
        from unnest(source.tables) t(oid) join pg_class c using (oid)
        where (
            select count(*) from pg_trigger g join pg_proc p on p.oid = g.tgfoid
            where g.tgrelid = c.oid and g.tgenabled in ('O', 'A') and p.proname like format('source\_%s\_%%', source.queue_id)
                and p.pronamespace = (select relnamespace from pg_class where oid = 'pgtally.queue'::regclass)
        ) < case c.relkind when 'r' then 4 else 3 end;
        if silent_tables is not null then
            problems := array_append(problems, format('Triggers are missing or disabled on %s: what is written there is not counted. Enable them, '
                'or drop the counter and create it again; then run: %s', silent_tables, reconcile));
        end if;
    end if;

    if not exists (select from pg_class where oid = counter.target_table) then
        problems := array_append(problems, 'Detached: its target table was dropped. Drop the counter; if there is a new table, create it again for that.');
    else
        begin
            perform pgtally.require_key_column(counter_name, counter.target_table, counter.target_key);
            perform pgtally.require_target(counter_name, counter.target_table, counter.target_key, counter.target_column);
        exception when sqlstate 'TL003' then
            problems := array_append(problems, format('Detached, its events wait: %s. Mend that, or drop the counter and create it again.', sqlerrm));
        end;
    end if;
    return problems;
end
$$;
