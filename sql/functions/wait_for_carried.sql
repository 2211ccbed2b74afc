-- wait_for_carried(counter_name, min_age, max_wait, report, notify): waits for the row that has been carried longest and adds to it.
--
-- For a row that is nearly always locked, which SKIP LOCKED alone might never find free: standing in line for it
-- means having it next. One row in a transaction of its own that holds nothing else, so it cannot be part of a
-- deadlock, and for max_wait at most. Only what has been carried for min_age is waited for. added: it
-- had a row to wait for and got it. report, notify, version, changes: as apply_batch().
--
-- The consumer's lock is not taken while waiting: batches go on meanwhile. Where somebody is told, it is taken afterwards, for the version; and because the row is ours by then, which
-- others may want, for 50 ms at most: if a batch in hand takes longer, this is tried again another time. Without it, only what belongs to the row is written: a key that has no row any more
-- is left to apply_carried(), as the one who has the consumer may be dropping the same.
--
-- Errors: TL001 when there is no such counter; TL004 when the transaction is not READ COMMITTED; as add_deltas().
create or replace function pgtally.wait_for_carried(
    counter_name text, min_age interval default '1 second', max_wait interval default '500 milliseconds',
    report boolean default false, notify boolean default false, out added boolean, out version bigint, out changes json
) language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = 0 as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    waited_for text;
    locked boolean;
    dropped bigint;
    changed bigint;
begin
    added := false;
    perform pgtally.require_read_committed();
    execute format('select key::text from pgtally.carry_%s where since < clock_timestamp() - $1 order by since limit 1',
        counter.counter_id)
    into waited_for using min_age;
    if waited_for is null then
        return;
    end if;
    perform set_config('lock_timeout', greatest((extract(epoch from max_wait) * 1000)::integer, 1)::text, true);
    begin
        execute format('select true from %s where %I = $1::%s for no key update', counter.target_table, counter.target_key, pgtally.key_type(counter))
        into locked using waited_for;
        if locked is null then
            return;
        end if;
        if report or notify then
            perform set_config('lock_timeout', '50ms', true);
            perform from pgtally.consumer c where c.consumer_id = counter.counter_id for update;
        end if;
    exception when lock_not_available then
        return;
    end;
    execute format(
        'select a.dropped_events, a.changed, a.changes from pgtally.add_deltas($1, array[$2::%s], array[0::bigint], array[0::bigint], $3) a', pgtally.key_type(counter))
    into dropped, changed, changes using counter, waited_for, report;
    version := pgtally.finish_applying(counter, dropped, changed, report, notify);
    added := true;
end
$$;
