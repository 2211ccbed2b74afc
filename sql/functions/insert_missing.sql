-- insert_missing(counter, missing_keys): inserts target rows with a count of 0; returns the keys for which it did.
--
-- The part of add_deltas() for on_missing = insert. Another transaction may have inserted the same key meanwhile; or it
-- has and is not committed yet: then the unique index makes us wait, with rows of the target locked. lock_timeout ends that
-- well before anyone's deadlock_timeout (1 s by default). So that one such key does not hold up the others for good, they
-- are then inserted one by one, in changing order, until a few more have timed out.
create or replace function pgtally.insert_missing(counter pgtally.counter, missing_keys anyarray) returns anyarray
language plpgsql volatile
set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '50ms' as $$
declare
    key_type constant text := (select format_type(typelem, null) from pg_type where oid = pg_typeof(missing_keys)::oid);
    statement constant text := format(
        'with inserted as (
            insert into %1$s (%2$I, %3$I) select key, 0 from pg_catalog.unnest($1) key on conflict (%2$I) do nothing returning %2$I::%4$s as key
        )
        select coalesce(pg_catalog.array_agg(key), ''{}'') from inserted',
        counter.target_table, counter.target_key, counter.target_column, key_type);
    session_path constant text := pgtally.session_search_path(counter.target_table);
    one_key missing_keys%type;
    inserted missing_keys%type;
    all_inserted missing_keys%type := '{}';
    timeouts integer := 0;
begin
    begin
        perform set_config('search_path', session_path, true);
        execute statement into all_inserted using missing_keys;
        return all_inserted;
    exception when lock_not_available then
        perform set_config('lock_timeout', '10ms', true);
    end;
    for one_key in select array[key] from unnest(missing_keys) key order by random() loop
        begin
            perform set_config('search_path', session_path, true);
            execute statement into inserted using one_key;
            perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            all_inserted := all_inserted || inserted;
        exception when lock_not_available then
            timeouts := timeouts + 1;
        end;
        exit when timeouts = 5;
    end loop;
    return all_inserted;
end
$$;
