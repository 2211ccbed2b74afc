-- require_young_snapshot(queue_id): raises TL004 when this REPEATABLE READ or SERIALIZABLE transaction may be so old that a slot was emptied
-- which was pending in its snapshot.
--
-- rotate() empties what was consumed a minute ago (or a rotation period, where that is shorter), and TRUNCATE does not respect
-- older snapshots. Unless the transaction has had all slots locked since it was younger, by an earlier fresh read. (One that has only
-- written holds the lock of one slot.)
create or replace function pgtally.require_young_snapshot(queue_id integer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    queue constant pgtally.queue := (select q from pgtally.queue q where q.queue_id = $1);
begin
    if clock_timestamp() - transaction_timestamp() > 0.9 * least(interval '1 minute', queue.rotation_period)
        and exists (
            select inhrelid from pg_inherits where inhparent = format('pgtally.event_%s', $1)::regclass
            except select relation from pg_locks where pid = pg_backend_pid() and locktype = 'relation' and granted)
    then
        raise exception 'Queue "%": this % transaction is too old for a fresh count', queue.name, upper(current_setting('transaction_isolation'))
            using errcode = 'TL004', hint = 'Events that its snapshot still counts as pending may be gone. Read the count '
                'within its first minute (or rotation period), or in a READ COMMITTED transaction.';
    end if;
end
$$;
