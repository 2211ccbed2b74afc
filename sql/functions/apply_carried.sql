-- apply_carried(counter_name, after_key, max_keys, report, notify): adds what is carried for rows that were locked, as far as they can be locked by now.
--
-- Goes through the keys in order, max_keys at a time, beginning after after_key (NULL: with the first), so that rows
-- which stay locked do not hide the others. keys: how many it looked at. last_key: the last of them, for the next call; NULL when it
-- reached the end or when another worker has the counter. locked_ms: how long rows had been locked when this returned. report, notify, version, changes: as
-- apply_batch().
--
-- Errors: as add_deltas().
create or replace function pgtally.apply_carried(
    counter_name text, after_key text default null, max_keys integer default 10000, report boolean default false, notify boolean default false,
    out keys integer, out last_key text, out locked_ms double precision, out version bigint, out changes json
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    row_count bigint;
    dropped bigint;
    changed bigint;
begin
    if counter.counter_id is null then
        return;
    end if;
    perform pgtally.require_read_committed();
    -- The limit is on rows, not keys, so that the index gives them in order and no more than these are read.
    execute format(
        'select s.rows, cardinality(s.keys), s.keys[cardinality(s.keys)]::text, a.dropped_events, a.locked_ms, a.changed, a.changes
        from (
            select count(*) as rows, array_agg(distinct key order by key) as keys from (
                select key from pgtally.carry_%1$s where $2 is null or key > $2::%2$s order by key limit $3
            ) carried
        ) s, pgtally.add_deltas($1, s.keys, array_fill(0::bigint, array[cardinality(s.keys)]), array_fill(0::bigint, array[cardinality(s.keys)]), $4) a
        where s.keys is not null',
        counter.counter_id, pgtally.key_type(counter))
    into row_count, keys, last_key, dropped, locked_ms, changed, changes using counter, after_key, max_keys, report;
    version := pgtally.finish_applying(counter, dropped, changed, report, notify);
    if row_count < max_keys then
        last_key := null;
    end if;
end
$$;
