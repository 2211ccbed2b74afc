-- rotate(queue_name): empties the queue's slots that are done with, and forgets its consumers' old batches.
--
-- May be called at any time, as often as wanted, also by several at once; workers do it all the time. Nothing
-- depends on when, or on every call succeeding: what cannot be emptied now is emptied later. Returns how many slots
-- were emptied.
--
-- Why no event is lost, however late it was written. A slot's lock is taken first, without waiting; the decision is made
-- by a later statement. A transaction that has written to the slot and not ended yet holds the slot's lock, so we give up;
-- one that has ended is seen by that statement, and its events must lie behind every boundary; one that comes
-- later finds an empty table. A consumer that is just being registered holds FOR KEY SHARE on the queue's row.
--
-- Where events are to be kept (retain), only the slot that is written next is emptied: it has not been written for one to two periods.
--
-- Runs with its owner's rights: EXECUTE on it is all that a worker needs.
--
-- Errors: TL001 when there is no such queue; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.rotate(queue_name text) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.queue_id(queue_name);
    emptied integer := 0;
    stale boolean;
    slot integer;
begin
    perform pgtally.require_read_committed();
    -- Read first, and change only what needs it: a call with nothing to do assigns no transaction id.
    select exists (
        select from pgtally.consumer c, lateral pgtally.settled_batch(c.consumer_id) s
        where c.queue_id = id and exists (select from pgtally.batch b where b.consumer_id = c.consumer_id and b.batch_id < s.batch_id)
    ) into stale;
    if stale then
        -- seek() and others that delete them may take their time to commit.
        delete from pgtally.batch b where b.batch_id in (
            select o.batch_id from pgtally.consumer c, lateral pgtally.settled_batch(c.consumer_id) s, pgtally.batch o
            where c.queue_id = id and o.consumer_id = c.consumer_id and o.batch_id < s.batch_id
            for update of o skip locked
        );
    end if;

    for slot in
        select s from generate_series(0, 2) s, pgtally.queue q,
            lateral pgtally.slot_at(clock_timestamp(), q.rotation_period) current_slot
        where q.queue_id = id and s <> current_slot and (q.retain = interval '0' or s = mod(current_slot + 1, 3))
            and pg_relation_size(format('pgtally.event_%s_%s', id, s)::regclass) > 0
            and pgtally.slot_is_consumed(id, s)
    loop
        begin
            perform from pgtally.queue q where q.queue_id = id for update nowait;
            execute format('lock table pgtally.event_%s_%s in access exclusive mode nowait', id, slot);
            -- Someone else may have emptied it meanwhile.
            if pg_relation_size(format('pgtally.event_%s_%s', id, slot)::regclass) > 0 and pgtally.slot_is_consumed(id, slot) then
                execute format('truncate pgtally.event_%s_%s', id, slot);
                emptied := emptied + 1;
            else
                raise lock_not_available; -- gives the locks back
            end if;
        exception when lock_not_available then
            null;
        end;
    end loop;
    return emptied;
end
$$;
