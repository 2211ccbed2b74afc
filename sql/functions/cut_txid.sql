-- cut_txid(queue_id, start_boundary, end_boundary, max_events): the first transaction id to leave for later, so that a batch has about
-- max_events events; NULL when it has no more than that anyway.
--
-- Only events that are in the batch uncut are looked at: the caller's own, which it sees, are not. Any answer is right, since a boundary can be cut anywhere; it is only to be found quickly. Counting through the index
-- takes as long as half the batch itself. But events are appended, so those from the first pending one on
-- lie together, about 120 to a page: look at the row that many pages on, in each slot. Only where that row is older than the
-- first pending event (a long transaction's) does it tell nothing, and then, as for a small batch, they are counted.
create or replace function pgtally.cut_txid(queue_id integer, start_boundary pg_snapshot, end_boundary pg_snapshot, max_events integer) returns xid8
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_bitmapscan = off set enable_sort = off as $$
declare
    events_per_page constant integer := 120;
    first_pending record;
    first_txid xid8;
    row_txid xid8;
    cut xid8;
begin
    for slot in 0..2 loop
        execute format('select ev_txid as txid, (ctid::text::point)[0]::bigint as page from pgtally.event_%s_%s
            where ev_txid >= $1 and pg_visible_in_snapshot(ev_txid, $2) order by ev_txid limit 1', queue_id, slot)
        into first_pending using pg_snapshot_xmax(start_boundary), end_boundary;
        if first_pending.txid is not null then
            execute format('select ev_txid from pgtally.event_%s_%s where ctid >= $1 limit 1', queue_id, slot)
            into row_txid using format('(%s,0)', first_pending.page + max_events / events_per_page)::tid;
            first_txid := least(first_txid, first_pending.txid);
            cut := least(cut, row_txid);
        end if;
    end loop;
    if max_events >= 100 * events_per_page and (cut is null or cut > first_txid) then
        return cut;
    end if;

    execute format('select ev_txid from pgtally.event_%s
        where ev_txid >= $1 and pg_visible_in_snapshot(ev_txid, $2) order by ev_txid offset $3 limit 1', queue_id)
    into cut using pg_snapshot_xmax(start_boundary), end_boundary, max_events;
    if cut = first_txid then
        -- The first transaction is always in, however large, or there would be no progress.
        execute format('select ev_txid from pgtally.event_%s where ev_txid > $1 and pg_visible_in_snapshot(ev_txid, $2) order by ev_txid limit 1', queue_id)
        into cut using first_txid, end_boundary;
    end if;
    return cut;
end
$$;
