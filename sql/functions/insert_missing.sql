-- insert_missing(counter, missing_keys, keys, deltas, events): inserts target rows for those of the keys that have none.
--
-- The part of add_deltas() for on_missing = insert. Returns the number of keys that had to be carried instead: another
-- transaction has inserted the same key meanwhile, or is about to. For the latter the unique index makes us wait,
-- with rows of the target locked; lock_timeout ends that well before anyone's deadlock_timeout (1 s by default).
create or replace function pgtally.insert_missing(
    counter pgtally.counter, missing_keys anyarray, keys anyarray, deltas bigint[], events bigint[]
) returns integer language plpgsql volatile
set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
declare
    key_type constant text := (select format_type(typelem, null) from pg_type where oid = pg_typeof(keys)::oid);
    inserted_keys keys%type := '{}';
    carried integer;
begin
    begin
        execute format(
            'with inserted as (
                insert into %1$s (%2$I, %3$I)
                select key, delta from unnest($1, $2) u(key, delta) where key = any ($3) and delta <> 0
                on conflict (%2$I) do nothing
                returning %2$I::%4$s as key
            )
            select coalesce(array_agg(key), ''{}'') from inserted',
            counter.target_table, counter.target_key, counter.target_column, key_type)
        into inserted_keys using keys, deltas, missing_keys;
    exception when lock_not_available then
        null;
    end;
    execute format(
        'with carried as (
            insert into pgtally.carry_%s (key, delta, events)
            select key, delta, events from unnest($1, $2, $3) u(key, delta, events)
            where key = any ($4) and delta <> 0
            returning key
        )
        select count(*) from carried', counter.counter_id)
    into carried using keys, deltas, events, array(select unnest(missing_keys) except select unnest(inserted_keys));
    return carried;
end
$$;
