-- is_stored(counter_name, txid, key): whether the stored counts include all that the transaction has emitted to the counter's queue, or
-- where a key is given, the stored count of that key.
--
-- False while the transaction is in progress, and on a standby until its end was replayed there; true for one that was rolled back, or has emitted nothing there. What may still
-- be carried is what was carried when the counter first went past the transaction, by the time of the server's clock.
--
-- Each statement below has a younger snapshot than the one before (in READ COMMITTED): what had ended is seen by whoever looks for its events, and
-- what was taken by then is seen by whoever looks where it went. A standby's snapshots do not list what is in progress, so there that is asked apart.
--
-- Runs with its owner's rights: EXECUTE on it is all that a writer needs.
--
-- Errors: TL001 when there is no such counter; TL004 on a standby when the transaction is not READ COMMITTED; TL005 as require_own_cluster(); 22P02 when the key is not of the queue's type.
create or replace function pgtally.is_stored(counter_name text, txid xid8, key text default null) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
    taken_at timestamptz;
    waiting boolean;
begin
    perform pgtally.require_own_cluster(consumer);
    if not pg_visible_in_snapshot(txid, pg_current_snapshot()) then
        return false;
    end if;
    if pg_is_in_recovery() then
        perform pgtally.require_read_committed();
        if pg_xact_status(txid) = 'in progress' then
            return false;
        end if;
    end if;
    execute format('select exists (select from (%s) e where ev_txid = $1)',
        pgtally.events_query(consumer.queue_id, (pgtally.consumer_position(counter.counter_id)).end_boundary, null))
    into waiting using txid;
    if waiting then
        return false;
    end if;
    select min(b.finished_at) into taken_at from pgtally.batch b
    where b.consumer_id = counter.counter_id and pg_visible_in_snapshot(txid, b.end_boundary);
    if taken_at is null then
        -- The boundary moves with events only, so it may lie before a transaction that has emitted none.
        return true;
    end if;
    execute format('select exists (select from pgtally.carried_%s where since <= $1 and ($2 is null or key = $2::%s))',
        counter.counter_id, pgtally.key_type(counter))
    into waiting using taken_at, key;
    return not waiting;
end
$$;
