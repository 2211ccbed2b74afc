-- apply_packed(counter_name, max_keys, report, notify): adds what apply_batch() has put off, a hundred keys or more of it.
--
-- keys: how many; NULL when there are none or another worker has the counter. locked_ms: how long rows had been locked when this
-- returned. What is locked by someone else is carried by itself from here on. report, notify, version,
-- changes: as apply_batch().
--
-- Errors: as add_deltas().
create or replace function pgtally.apply_packed(
    counter_name text, max_keys integer default 10000, report boolean default false, notify boolean default false,
    out keys integer, out locked_ms double precision, out version bigint, out changes json
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    dropped bigint;
    changed bigint;
begin
    if counter.counter_id is null then
        return;
    end if;
    perform pgtally.require_read_committed();
    -- Rows of several batches can have the same key.
    execute format(
        'with taken as (
            delete from pgtally.packed_%1$s where ctid = any (array(select ctid from pgtally.packed_%1$s limit greatest($2 / 100, 1)))
            returning keys, deltas, events
        )
        select cardinality(s.keys), a.dropped_events, a.locked_ms, a.changed, a.changes
        from (
            select array_agg(key) as keys, array_agg(delta) as deltas, array_agg(events) as events from (
                select u.key, pgtally.sum_delta(u.delta) as delta, pgtally.sum_delta(u.events) as events
                from taken t, unnest(t.keys, t.deltas, t.events) u(key, delta, events)
                group by u.key
            ) summed
        ) s, pgtally.add_deltas($1, s.keys, s.deltas, s.events, $3) a
        where s.keys is not null',
        counter.counter_id)
    into keys, dropped, locked_ms, changed, changes using counter, max_keys, report;
    version := pgtally.finish_applying(counter, dropped, changed, report, notify);
end
$$;
