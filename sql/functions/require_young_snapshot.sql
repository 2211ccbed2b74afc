-- require_young_snapshot(queue_id): raises TL004 when a slot was emptied which may have been pending in the snapshot that is in use.
--
-- To be called when the slots have been read: from then on they are locked, so nobody empties them. rotate() empties what was consumed a minute
-- ago (or a rotation period, where that is shorter), and TRUNCATE does not respect older snapshots. That may happen to a REPEATABLE READ
-- or SERIALIZABLE transaction which has not read the slots when it was younger, to a cursor, and to a single statement that comes to it late. On a standby it may
-- happen to anyone at any age, as a minute of the primary is replayed in a moment when it catches up.
--
-- TRUNCATE gives a slot a new file. pg_relation_filenode() knows that at once; pg_class says so in younger snapshots only.
create or replace function pgtally.require_young_snapshot(queue_id integer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    queue constant pgtally.queue := (select q from pgtally.queue q where q.queue_id = $1);
begin
    if (pg_is_in_recovery() or clock_timestamp() - transaction_timestamp() > 0.9 * least(interval '1 minute', queue.rotation_period))
        and exists (
            select from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = format('pgtally.event_%s', $1)::regclass and c.relfilenode <> pg_relation_filenode(c.oid))
    then
        raise exception 'Queue "%": the snapshot of this % transaction is too old for a fresh count', queue.name, upper(current_setting('transaction_isolation'))
            using errcode = 'TL004', hint = 'Events that it still counts as pending are gone. Read the count '
                'within its first minute (or rotation period), or in a READ COMMITTED transaction. On a standby, read it again in another transaction.';
    end if;
end
$$;
