-- require_young_snapshot(counter): raises TL004 when the transaction's snapshot may be so old that a slot was emptied which was pending in it.
--
-- rotate() empties what was consumed a minute ago (or a rotation period, where that is shorter), and TRUNCATE does not respect
-- older snapshots. A snapshot of one statement does not get that old. One of a whole transaction may; unless it has locked the
-- event table, by an earlier fresh read, since then.
create or replace function pgtally.require_young_snapshot(counter pgtally.counter) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    queue constant pgtally.queue := (select q from pgtally.queue q join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id);
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable')
        and clock_timestamp() - transaction_timestamp() > 0.9 * least(interval '1 minute', queue.rotation_period)
        and not exists (
            select from pg_locks l
            where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted
                and l.relation = format('pgtally.event_%s', queue.queue_id)::regclass)
    then
        raise exception 'Counter "%": this % transaction is too old for a fresh count', counter.name, upper(current_setting('transaction_isolation'))
            using errcode = 'TL004', hint = 'Events that its snapshot still counts as pending may be gone. Read the count '
                'within its first minute (or rotation period), or in a READ COMMITTED transaction.';
    end if;
end
$$;
