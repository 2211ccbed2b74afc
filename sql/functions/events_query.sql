-- events_query(queue_id, start_boundary, end_boundary, columns): the SQL text of a query for the events between two boundaries,
-- or for all visible events after the first, where end_boundary is NULL. The one place that says what a batch is.
--
-- An event is in it when its transaction had not finished at start_boundary and has at end_boundary. Either its id was
-- not yet given out (>= xmax) or it was listed as in progress. Two branches, so that each is an index scan; they
-- share no event, since a snapshot lists only ids below its xmax.
--
-- Text and not a set-returning function because the key's type differs from queue to queue. The comparison with xmin
-- only spares most events the call of pg_visible_in_snapshot.
create or replace function pgtally.events_query(queue_id integer, start_boundary pg_snapshot, end_boundary pg_snapshot, columns text default '*')
returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    finished_since constant xid8[] := array(
        select xid from pg_snapshot_xip(start_boundary) xid
        where end_boundary is null or pg_visible_in_snapshot(xid, end_boundary));
    selection text := format('select %s from pgtally.event_%s where ev_txid >= %L::xid8', columns, queue_id, pg_snapshot_xmax(start_boundary));
begin
    if end_boundary is not null then
        selection := selection || format(' and ev_txid < %L::xid8 and (ev_txid < %L::xid8 or pg_visible_in_snapshot(ev_txid, %L::pg_snapshot))',
            pg_snapshot_xmax(end_boundary), pg_snapshot_xmin(end_boundary), end_boundary);
    end if;
    if cardinality(finished_since) > 0 then
        selection := selection || format(' union all select %s from pgtally.event_%s where ev_txid = any (%L::xid8[])', columns, queue_id, finished_since);
    end if;
    return selection;
end
$$;
