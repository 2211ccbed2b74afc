-- create_source(queue_id): writes the trigger functions of a queue's source and puts them on its table and partitions.
--
-- Triggers fire once for each statement and see its rows in transition tables, so bulk statements, COPY, MERGE, ON CONFLICT
-- and cascades are counted, summed by key first. A single row, the most frequent statement by far, is spared the grouping: that
-- would take 10 % of the time of a like. A statement on a partitioned table fires that table's triggers only,
-- and one on a partition the partition's only: each gets its own (sync_triggers). TRUNCATE fires those of each table it
-- empties.
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
    queue pgtally.queue;
    source pgtally.source;
    key text;
    delta text;
    condition text;
    summed boolean;
begin
    select * into strict queue from pgtally.queue q where q.queue_id = queue_id;
    select * into strict source from pgtally.source s where s.queue_id = queue_id;
    key := quote_ident(source.source_key);
    summed := source.sum_expression is not null;
    delta := format('(%s)::pg_catalog.int8', coalesce(source.sum_expression, '1'));
    condition := format('where %s is not null', key) || coalesce(' and (' || source.where_condition || ')', '')
        -- Neither NULL nor 0: nothing to add.
        || case when summed then format(' and %s operator(pg_catalog.<>) 0', delta) else '' end;

    execute format(
        'create or replace function pgtally.source_%s() returns trigger language plpgsql security definer %s as %L',
        queue_id,
        case when source.where_condition is null and not summed then '' else pinned end,
        format($body$
#variable_conflict use_column
declare
    -- As slot_at().
    slot constant pg_catalog.int2 := pg_catalog.mod(pg_catalog.int8(pg_catalog.floor(pg_catalog.float8div(
        pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()), %L::pg_catalog.float8))), 3::pg_catalog.int8);
begin
    if tg_op operator(pg_catalog.=) 'INSERT' then
        if exists (select from new_rows offset 1) then
            %s
        else
            %s
        end if;
    elsif tg_op operator(pg_catalog.=) 'DELETE' then
        if exists (select from old_rows offset 1) then
            %s
        else
            %s
        end if;
    else
        %s
    end if;
    return null;
end
$body$,
            date_part('epoch', queue.rotation_period),
            pgtally.emit_summed(queue_id, format('select %s, %s from new_rows %s', key, delta, condition)),
            pgtally.emit_single(queue_id, format('%s, %s from new_rows %s', key, delta, condition)),
            pgtally.emit_summed(queue_id, format('select %s, pg_catalog.int8um(%s) from old_rows %s', key, delta, condition)),
            pgtally.emit_single(queue_id, format('%s, pg_catalog.int8um(%s) from old_rows %s', key, delta, condition)),
            pgtally.emit_summed(queue_id, format(
                'select %1$s, %2$s from new_rows %3$s union all select %1$s, pg_catalog.int8um(%2$s) from old_rows %3$s',
                key, delta, condition))));

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
            format('insert into pgtally.event_%s (ev_slot, ev_key, ev_delta)
                select pgtally.slot_at(clock_timestamp(), %L), %s, -pgtally.sum_delta(%s) from only ', queue_id, queue.rotation_period, key, delta),
            format(' %s group by %s', condition, key)));
    execute format('revoke all on function pgtally.source_%1$s(), pgtally.source_%1$s_truncate() from public', queue_id);

    perform pgtally.sync_triggers(queue.name);
end
$$;
