-- rebase(queue_name): makes the positions of a queue's consumers those of this cluster, after a restore.
--
-- Boundaries and ev_txid of restored events are transaction ids of the old cluster. Between each other they still say which
-- event is pending for which consumer; to compare with those of this cluster, which may be lower, they are of no use. So events get
-- new ids: all that are pending for the same consumers one and the same, out of those below any that this cluster gives to a
-- transaction of pgtally. Each consumer's new boundary is that of now, with the ids of its pending events listed as in progress, so
-- that the next batch takes them. Those pending for nobody get an id that nobody lists; they stay as long as they would have (retain).
--
-- Events that were emitted in this cluster meanwhile are pending for every consumer that was restored. They are told
-- from restored ones by the row's xmin: the index of the whole table became valid when the rows of all slots were there and indexed,
-- before any trigger was made. (That of one slot says nothing about the others: pg_restore may fill those later.)
--
-- Open batches are forgotten; their consumers are given the events again. The new position has the token of the last batch before them: what had been received
-- just up to there goes on, what had received more is told (receive_batch). Writers are not disturbed. Returns the number of events that
-- are pending; NULL when the positions were this cluster's already.
--
-- Errors: TL001 when there is no such queue; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.rebase(queue_name text) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    -- The first that any transaction has, long before pgtally can be there (FirstNormalTransactionId).
    first_id constant integer := 3;
    id constant integer := pgtally.queue_id(queue_name);
    event_table constant text := format('pgtally.event_%s', id);
    own_cluster constant bigint := pgtally.system_identifier();
    restored constant text := format('age(e.xmin) >= (select max(age(i.xmin)) from pg_index i where i.indrelid = %L::regclass)', event_table);
    flags text := quote_literal('');
    boundary pg_snapshot;
    consumer record;
    number integer := 0;
    groups text[];
    pending bigint;
begin
    perform pgtally.require_read_committed();
    if not exists (select from pgtally.consumer c where c.queue_id = id and c.system_identifier <> own_cluster) then
        return null;
    end if;
    -- No batch is taken or finished, no slot emptied, no consumer registered until this ends. The consumers first, as everyone else who
    -- locks both does; then those that were registered while we waited. finish_batch() locks its batch only.
    perform from pgtally.consumer c where c.queue_id = id order by c.consumer_id for update;
    perform from pgtally.queue q where q.queue_id = id for update;
    perform from pgtally.consumer c where c.queue_id = id order by c.consumer_id for update;
    perform from pgtally.batch b join pgtally.consumer c using (consumer_id) where c.queue_id = id for update of b;
    -- Somebody else may have done it meanwhile.
    if not exists (select from pgtally.consumer c where c.queue_id = id and c.system_identifier <> own_cluster) then
        return null;
    end if;
    boundary := pgtally.current_boundary();

    -- For each event a text of one flag for each consumer: whether it is pending for that.
    for consumer in
        select c.system_identifier = own_cluster as own,
            format('not pg_visible_in_snapshot(e.ev_txid, %L)', p.end_boundary) || coalesce((
                select string_agg(format(' or not pg_visible_in_snapshot(e.ev_txid, %L) and pg_visible_in_snapshot(e.ev_txid, %L)', b.start_boundary, b.end_boundary), '')
                from pgtally.batch b where b.consumer_id = c.consumer_id and b.finished_at is null), '') as pending
        from pgtally.consumer c, lateral pgtally.consumer_position(c.consumer_id) p
        where c.queue_id = id order by c.consumer_id
    loop
        flags := flags || format(
            case when consumer.own then ' || (not (%1$s) and (%2$s))::integer'
                else ' || (not (%1$s) or %2$s)::integer' end,
            restored, consumer.pending);
    end loop;
    -- What has not finished at the boundary keeps its id and will be in a batch by that. All else stays the same
    -- from one of these statements to the next.
    execute format(
        'select array_agg(g.flags), sum(g.events) filter (where g.flags like ''%%1%%'')
        from (select %2$s as flags, count(*) as events from %1$s e where %3$s or pg_visible_in_snapshot(e.ev_txid, $1) group by 1) g',
        event_table, flags, restored)
    into groups, pending using boundary;
    execute format(
        'update %1$s e set ev_txid = (array_position($2, %2$s) + %4$s)::text::xid8 where %3$s or pg_visible_in_snapshot(e.ev_txid, $1)',
        event_table, flags, restored, first_id - 1)
    using boundary, groups;

    for consumer in
        select c.consumer_id, p.batches, p.events, p.dropped_events, p.late_events, p.future_events, (
            select b.token from pgtally.batch b
            where b.consumer_id = c.consumer_id and b.finished_at is not null
                and not exists (select from pgtally.batch o where o.consumer_id = c.consumer_id and o.finished_at is null and o.batch_id < b.batch_id)
            order by b.batch_id desc limit 1) as token
        from pgtally.consumer c, lateral pgtally.consumer_position(c.consumer_id) p
        where c.queue_id = id order by c.consumer_id
    loop
        number := number + 1;
        update pgtally.failed_event f set batch_id = null where f.consumer_id = consumer.consumer_id and f.batch_id is not null;
        delete from pgtally.batch b where b.consumer_id = consumer.consumer_id;
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events, late_events, future_events, token)
        select consumer.consumer_id, b.position, b.position, clock_timestamp(), consumer.batches, consumer.events, consumer.dropped_events, consumer.late_events, consumer.future_events,
            coalesce(consumer.token, gen_random_uuid())
        from (
            select format('%s:%s:%s', least(pg_snapshot_xmin(boundary), (array_agg(xid order by xid))[1]), pg_snapshot_xmax(boundary),
                string_agg(xid::text, ',' order by xid))::pg_snapshot
            from (
                select pg_snapshot_xip(boundary)
                union select (g.ordinality + first_id - 1)::text::xid8
                from unnest(groups) with ordinality g(flags) where substr(g.flags, number, 1) = '1'
            ) in_progress(xid)
        ) b(position);
    end loop;
    update pgtally.consumer c set system_identifier = own_cluster, last_error = null, last_error_at = null where c.queue_id = id;
    return coalesce(pending, 0);
end
$$;
