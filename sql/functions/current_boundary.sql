-- current_boundary(): the transactions that have finished, as of now, for a consumer to take as its next boundary.
--
-- Call it in a statement after the one that locked the consumer: only then is every boundary that was stored before the
-- lock older than this one. In REPEATABLE READ the snapshot could be older than the lock, so that is refused.
--
-- A snapshot does not list its owner, whose later events would then count as given; so the caller's own transaction id,
-- where it has one, is added to those in progress.
--
-- Errors: TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.current_boundary() returns pg_snapshot
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    boundary constant pg_snapshot := pg_current_snapshot();
    own constant xid8 := pg_current_xact_id_if_assigned();
begin
    perform pgtally.require_read_committed();
    if own is null or not pg_visible_in_snapshot(own, boundary) then
        return boundary;
    end if;
    return format('%s:%s:%s', least(pg_snapshot_xmin(boundary), own), pg_snapshot_xmax(boundary),
        (select string_agg(xid::text, ',' order by xid)
         from (select pg_snapshot_xip(boundary) union select own) in_progress(xid)));
end
$$;
