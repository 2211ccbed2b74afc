-- pending_query(counter): SQL text of a query for the counter's pending events: those it sees and has not taken yet.
--
-- The counter's position is read by the query itself, so that both come from one snapshot, whichever that is. In the caller's
-- own transaction that includes the events it has emitted and not committed: a boundary lists their id as in progress,
-- or ends below it. Without the events' data, which a reader may not see.
--
-- Errors: TL005 when the position belongs to another cluster.
create or replace function pgtally.pending_query(counter pgtally.counter) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
    boundary constant text := format('(pgtally.consumer_position(%s)).end_boundary', counter.counter_id);
begin
    perform pgtally.require_own_cluster(consumer);
    return format(
        'select ev_key, ev_delta, ev_time, ev_at from pgtally.event_%1$s where ev_txid >= (select pg_catalog.pg_snapshot_xmax(%2$s))
        union all select ev_key, ev_delta, ev_time, ev_at from pgtally.event_%1$s where ev_txid = any (array(select pg_catalog.pg_snapshot_xip(%2$s)))',
        consumer.queue_id, boundary);
end
$$;
