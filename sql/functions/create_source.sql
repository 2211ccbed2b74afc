-- create_source(queue_id): writes the trigger functions of a queue's source; sync_triggers() puts them on its tables. An upgrade writes them anew.
--
-- Triggers fire once for each statement and see its rows in transition tables, so bulk statements, COPY, MERGE, ON CONFLICT
-- and cascades are counted, summed by key first. A statement on a partitioned table fires that table's triggers only,
-- and one on a partition the partition's only: each gets its own (sync_triggers). TRUNCATE fires those of each table it
-- empties.
--
-- The rows of a statement are summed by key, unless they have data to bring. Most statements have one row, which is spared that: to sum it would cost 9 us of the server's time, to
-- ask in a statement before whether there are more 4 us, and to ask within the statement next to nothing; an INSERT of one row takes 57 us,
-- and 95 us with this (PostgreSQL 15, 16 connections; docs/benchmarks.md has what else was tried).
--
-- With a time column they are summed by key and time (event_time); an event takes back from the time at which the row was counted, as the row says it still.
--
-- With data columns each row is an event of its own; an UPDATE takes back the old row and gives the new one, unless they are the same in key, delta and data.
--
-- The functions run with their owner's rights, so a writer needs none on pgtally. A SET search_path would cost a writer
-- some throughput, so where no expression is involved there is none: every name and operator is qualified instead (a test
-- shadows them). The queue's name is passed for the reader; nothing asks for the table's name, which is
-- another one on a shard.
create or replace function pgtally.create_source(queue_id integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    pinned constant text := 'set search_path = pg_catalog, pg_temp';
    source pgtally.source;
    delta text;
    plus text;
    minus text;
    -- What an event brings along beside key and delta: columns of the event and of a row, and their names and numbers in a selection.
    event_columns text := '';
    row_columns text := '';
    names text := '';
    numbers text := '1';
    condition text;
    emit text;
    emit_sums text;
    of_changes text;
    operation text;
    body text;
begin
    select * into strict source from pgtally.source s where s.queue_id = queue_id;
    delta := format('(%s)::pg_catalog.int8', coalesce(source.sum_expression, '1'));
    if source.time_column is not null then
        event_columns := ', ev_at';
        row_columns := ', ' || pgtally.time_expression(source);
        names := ', at';
        numbers := '1, 3';
    end if;
    if source.data_columns is not null then
        event_columns := event_columns || ', ev_data';
        row_columns := row_columns || format(', pg_catalog.jsonb_build_object(%s)', (select string_agg(format('%L, %I', c, c), ', ' order by n) from unnest(source.data_columns) with ordinality u(c, n)));
        names := names || ', data';
        numbers := numbers || case when source.time_column is null then ', 3' else ', 4' end;
    end if;
    plus := format('select %I, %s%s from ', source.source_key, delta, row_columns);
    minus := format('select %I, pg_catalog.int8um(%s)%s from ', source.source_key, delta, row_columns);
    condition := format(' where %I is not null', source.source_key) || coalesce(' and (' || source.where_condition || ')', '');
    if source.sum_expression is not null then
        -- Neither 0 nor NULL.
        condition := condition || format(' and %s operator(pg_catalog.<>) 0', delta);
    end if;
    emit := format('insert into pgtally.event_%s (ev_key, ev_delta%s) ', queue_id, event_columns);
    emit_sums := emit || format('select changed.key, pgtally.sum_delta(changed.delta)%s from (', replace(names, ', ', ', changed.'));
    of_changes := format(') changed(key, delta%s) group by %s having pgtally.sum_delta(changed.delta) operator(pg_catalog.<>) 0', names, numbers);

    for operation, body in
        select change.operation, case when source.data_columns is not null then emit || change.selection || condition || ';' else format(
            '%s and not exists (select from %s offset 1);
            if not found then
                %s;
            end if;',
            emit || change.selection || condition, change.rows, emit_sums || change.selection || condition || of_changes) end
        from (values ('insert', 'new_rows', plus || 'new_rows'), ('delete', 'old_rows', minus || 'old_rows')) change(operation, rows, selection)
        union all
        values ('update', emit_sums || plus || 'new_rows' || condition || ' union all ' || minus || 'old_rows' || condition || of_changes || ';')
    loop
        execute format(
            'create or replace function pgtally.source_%s_%s() returns trigger language plpgsql security definer %s as %L',
            queue_id, operation,
            case when source.where_condition is null and source.sum_expression is null then '' else pinned end,
            format(E'#variable_conflict use_column\nbegin\n    %s\n    return null;\nend', body));
    end loop;

    -- TRUNCATE takes away rows that an older snapshot does not show, so the count of what goes needs a new one. The
    -- table's lock is held by then, so no row can come after it.
    execute format(
        'create or replace function pgtally.source_%s_truncate() returns trigger language plpgsql security definer %s as %L',
        queue_id, pinned || ' set row_security = off',
        format($body$
begin
    perform pgtally.require_read_committed();
    execute %L || tg_relid::regclass || %L;
    return null;
end
$body$,
            case when source.data_columns is not null then emit else emit_sums end || minus || 'only ', condition || case when source.data_columns is not null then '' else of_changes end));
    for operation in select unnest(array['insert', 'update', 'delete', 'truncate']) loop
        execute format('revoke all on function pgtally.source_%s_%s() from public', queue_id, operation);
    end loop;
end
$$;
