-- carried_locks(min_age): for each counter that has carried a delta for so long: the key that has waited longest, and who has its row locked.
--
-- pid: the session whose transaction holds the row; gid: the prepared transaction that does; both NULL where the row is free at this moment, or where the caller may not read it.
-- Waits for nobody.
create or replace function pgtally.carried_locks(min_age interval default '1 minute')
returns table (counter text, key text, since timestamptz, target regclass, pid integer, gid text)
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '10ms' as $$
#variable_conflict use_column
declare
    found_counter record;
    locker xid;
    lockers xid[];
begin
    for found_counter in select k.* from pgtally.counter k order by k.name loop
        execute format('select key::text, since from pgtally.carried_%s where since < clock_timestamp() - $1 order by since limit 1', found_counter.counter_id)
        into key, since using min_age;
        continue when key is null;
        counter := found_counter.name;
        target := found_counter.target_table;
        pid := null;
        gid := null;
        locker := null;
        begin
            -- Who has locked a row, or has updated it and not ended, stands in its xmax; or there stands a multixact, a list of several.
            execute format('select t.xmax from %s t where t.%I = $1::%s', found_counter.target_table, found_counter.target_key,
                pgtally.key_type((select k from pgtally.counter k where k.counter_id = found_counter.counter_id)))
            into locker using key;
        exception when insufficient_privilege or lock_not_available or undefined_table or undefined_column or syntax_error then
            null;
        end;
        lockers := array[locker];
        if locker is not null and not exists (select from pg_locks l where l.locktype = 'transactionid' and l.transactionid = locker) then
            begin
                lockers := array(select m.xid from pg_get_multixact_members(locker) m);
            exception when others then
                -- No multixact has that number.
                null;
            end;
        end if;
        select l.pid, p.gid into pid, gid
        from pg_locks l left join pg_prepared_xacts p on p.transaction = l.transactionid
        where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.transactionid = any (lockers)
        limit 1;
        return next;
    end loop;
end
$$;
