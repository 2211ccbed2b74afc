-- next_boundary(consumer, start_boundary, max_events): where the consumer's next batch ends.
--
-- All that has finished by now; where that is more than about max_events, cut at a transaction (cut_txid, cut_boundary), so
-- that a backlog of any size is taken in bounded batches. A transaction is never divided: a batch can be larger than
-- max_events by one transaction's events, and by those of old transactions that have just finished. max_events NULL: uncut.
-- `cut` says whether it was. To be called under the lock of the consumer's row and in a later statement than the lock.
--
-- Errors: TL003 when max_events is below 1; TL004 when the transaction is not READ COMMITTED; TL005 as require_own_cluster(); TL006
-- when time ran backwards, which cannot happen in the cluster that made the boundary.
create or replace function pgtally.next_boundary(
    consumer pgtally.consumer, start_boundary pg_snapshot, max_events integer, out boundary pg_snapshot, out cut boolean
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    later xid8;
begin
    if max_events < 1 then
        raise exception 'max_events is %, and a batch needs at least one', max_events
            using errcode = 'TL003', hint = 'Use 1 or more, or NULL for no limit.';
    end if;
    boundary := pgtally.current_boundary();
    perform pgtally.require_own_cluster(consumer);
    if pg_snapshot_xmax(boundary) < pg_snapshot_xmax(start_boundary)
        or pg_snapshot_xmin(boundary) < pg_snapshot_xmin(start_boundary)
        or exists (
            select from pg_snapshot_xip(boundary) xid
            where xid < pg_snapshot_xmax(start_boundary) and pg_visible_in_snapshot(xid, start_boundary))
    then
        raise exception 'Consumer "%": the boundary % lies before the last one, %', consumer.name, boundary, start_boundary
            using errcode = 'TL006', hint = 'Transaction ids went backwards: was the cluster reset with pg_resetwal?';
    end if;

    if max_events is not null then
        later := pgtally.cut_txid(consumer.queue_id, start_boundary, boundary, max_events);
    end if;
    cut := later < pg_snapshot_xmax(boundary);
    if cut then
        boundary := pgtally.cut_boundary(boundary, later);
    end if;
    cut := coalesce(cut, false);
end
$$;
