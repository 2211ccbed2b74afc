-- create_source(queue_id): writes the trigger functions of a queue's source and puts them on its table and partitions.
--
-- Triggers fire once for each statement and see its rows in transition tables, so bulk statements, COPY, MERGE, ON CONFLICT
-- and cascades are counted, summed by key first. A statement on a partitioned table fires that table's triggers only,
-- and one on a partition the partition's only: each gets its own (sync_triggers). TRUNCATE fires those of each table it
-- empties.
--
-- One INSERT on the partitioned event table is all that a trigger runs. Measured beside a like of 69 us (PostgreSQL 15, one
-- connection, asynchronous commit, best of eight): 35 us so; 32 us where a single row is told from several and not summed; and no
-- less where branches choose the slot instead of the partitioning. Not worth another way of emitting.
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
    total text;
    nonzero text := '';
    operation text;
    selection text;
begin
    select * into strict queue from pgtally.queue q where q.queue_id = queue_id;
    select * into strict source from pgtally.source s where s.queue_id = queue_id;
    key := quote_ident(source.source_key);
    delta := format('(%s)::pg_catalog.int8', coalesce(source.sum_expression, '1'));
    condition := format('where %s is not null', key) || coalesce(' and (' || source.where_condition || ')', '');
    if source.sum_expression is null then
        total := 'pg_catalog.count(*)';
    else
        total := format('pgtally.sum_delta(%s)', delta);
        nonzero := format('having %s operator(pg_catalog.<>) 0', total);
    end if;

    for operation, selection in values
        ('insert', format('%s, %s from new_rows %s group by 2 %s', key, total, condition, nonzero)),
        ('delete', format('%s, pg_catalog.int8um(%s) from old_rows %s group by 2 %s', key, total, condition, nonzero)),
        ('update', format(
            'changed.key, pgtally.sum_delta(changed.delta) from (
                select %1$s, %2$s from new_rows %3$s union all select %1$s, pg_catalog.int8um(%2$s) from old_rows %3$s
            ) changed(key, delta)
            group by 2 having pgtally.sum_delta(changed.delta) operator(pg_catalog.<>) 0', key, delta, condition))
    loop
        execute format(
            'create or replace function pgtally.source_%s_%s() returns trigger language plpgsql security definer %s as %L',
            queue_id, operation,
            case when source.where_condition is null and source.sum_expression is null then '' else pinned end,
            format($body$
#variable_conflict use_column
begin
    insert into pgtally.event_%s (ev_slot, ev_key, ev_delta)
    -- As slot_at().
    select pg_catalog.mod(pg_catalog.int8(pg_catalog.floor(pg_catalog.float8div(
        pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()), %L::pg_catalog.float8))), 3::pg_catalog.int8),
        %s;
    return null;
end
$body$, queue_id, date_part('epoch', queue.rotation_period), selection));
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
            format('insert into pgtally.event_%s (ev_slot, ev_key, ev_delta)
                select pgtally.slot_at(clock_timestamp(), %L), %s, -%s from only ', queue_id, queue.rotation_period, key, total),
            format(' %s group by 2 %s', condition, nonzero)));
    for operation in select unnest(array['insert', 'update', 'delete', 'truncate']) loop
        execute format('revoke all on function pgtally.source_%s_%s() from public', queue_id, operation);
    end loop;

    perform pgtally.sync_triggers(queue.name);
end
$$;
