-- apply_carried(counter_name, after_key, max_keys): adds what is carried, as far as the rows can be locked by now.
--
-- Goes through the keys in order, max_keys at a time, beginning after after_key (NULL: with the first), so that rows
-- which stay locked do not hide the others. Returns the last key it looked at, for the next call, and NULL when it
-- reached the end or when another worker has the counter.
--
-- Errors: as add_deltas().
create or replace function pgtally.apply_carried(counter_name text, after_key text default null, max_keys integer default 10000)
returns text language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    last_key text;
    key_count integer;
    dropped bigint;
begin
    if counter.counter_id is null then
        return null;
    end if;
    perform pgtally.require_read_committed();
    execute format(
        'select s.keys[cardinality(s.keys)]::text, cardinality(s.keys), a.dropped_events
        from (
            select array_agg(key order by key) as keys from (
                select distinct key from pgtally.carry_%1$s where $2 is null or key > $2::%2$s order by key limit $3
            ) carried
        ) s, pgtally.add_deltas($1, s.keys, array_fill(0::bigint, array[cardinality(s.keys)]), array_fill(0::bigint, array[cardinality(s.keys)])) a
        where s.keys is not null',
        counter.counter_id, pgtally.key_type(counter))
    into last_key, key_count, dropped using counter, after_key, max_keys;
    perform pgtally.add_dropped(counter.counter_id, dropped);
    return case when key_count = max_keys then last_key end;
end
$$;
