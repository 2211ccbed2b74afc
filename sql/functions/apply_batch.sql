-- apply_batch(counter_name, max_events, max_keys, report, notify, max_hot_keys): adds the counter's next batch to its target and finishes it.
--
-- All in the caller's transaction, so each event counts exactly once, however often this is tried, by however many
-- workers. Never waits: for another worker (busy is then true and nothing was done), nor for a row of the target (its
-- delta is carried, see add_deltas()).
--
-- The rows that it adds to stay locked until the commit, so it adds to max_keys of them at most. What the batch has for other keys is carried
-- in packed rows, which apply_packed() adds in as many transactions as it takes. (To cut the batch by its events until it has so few
-- keys would leave few events to sum: a million over 100,000 keys would mean 50 batches of 20,000 updates, not one of 100,000.) In
-- pgtally's own table nobody else locks rows, so there all keys are added at once.
--
-- events: how many were applied, of how many keys; NULL when there was nothing to do. carried: for how many of the keys
-- the delta was not added yet. packed: how many of those were put off for apply_packed(). cut: there was more than max_events, so call again (max_events NULL: never cut). locked_ms: how long rows
-- had been locked when this returned.
--
-- report: say what was changed: changes is an array of [key, new stored count], both as text, and NULL where there is nothing to say. version: its number, greater than
-- that of whatever was told of this counter before (counter_version). notify: send the version to whoever listens (notify_applied), if anything was changed.
--
-- hot_keys: the max_hot_keys keys of which the batch had the most events, those first: an array of [key, events, delta], key and delta as text; NULL where none are wanted.
--
-- Errors: TL001 when there is no such counter; TL004, TL005, TL006 as next_boundary(); TL008 as add_deltas(); whatever the
-- target's constraints raise. After an error nothing has changed and the batch is still to come. A cut boundary may take
-- a delete before its insert: if a constraint on the target objects to that, max_events NULL is the way through.
create or replace function pgtally.apply_batch(
    counter_name text, max_events integer default 1000000, max_keys integer default 10000, report boolean default false, notify boolean default false,
    max_hot_keys integer default 0,
    out busy boolean, out events bigint, out keys integer, out carried integer, out packed integer, out cut boolean, out locked_ms double precision, out version bigint, out changes json,
    out hot_keys json
) language plpgsql volatile set search_path = pg_catalog, pg_temp set work_mem = '64MB' as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    keys_at_once constant integer := case when counter.own_target then 1000000000 else max_keys end;
    consumer pgtally.consumer;
    position pgtally.batch;
    boundary pg_snapshot;
    batch_events text;
    filed text := '';
    dropped bigint;
    changed bigint;
    late bigint;
    future bigint;
begin
    busy := counter.counter_id is null;
    if busy then
        return;
    end if;
    -- From here on in later statements than the lock.
    select * into consumer from pgtally.consumer c where c.consumer_id = counter.counter_id;
    position := pgtally.consumer_position(counter.counter_id);
    select n.boundary, n.cut into boundary, apply_batch.cut
    from pgtally.next_boundary(consumer, position.end_boundary, max_events) n;

    batch_events := pgtally.events_query(consumer.queue_id, position.end_boundary, boundary);
    if pgtally.has_times(counter) then
        filed := format(
            'timed as materialized (
                select array_agg(key) as keys, array_agg(time) as times, array_agg(delta) as deltas, array_agg(events) as events
                from (select ev_key as key, %s as time, pgtally.sum_delta(ev_delta) as delta, count(*) as events from (%s) e group by 1, 2) summed
            ), filed as materialized (
                select f.* from timed t, pgtally.add_to_buckets($1, t.keys, t.times, t.deltas, t.events) f where t.keys is not null
            ),',
            pgtally.event_moment(counter), batch_events);
        -- What is filed is read first, so buckets are written before the first row of the target is locked.
        batch_events := 'select u.key as ev_key, u.delta as ev_delta, u.events as events from filed, timed t, unnest(t.keys, t.deltas, t.events) u(key, delta, events)';
    end if;

    -- What is packed is counted first, hence written before the first row is locked.
    execute format(
        'with %s sums as materialized (
            select array_agg(key) as keys, array_agg(delta) as deltas, array_agg(events) as key_events, sum(events)::bigint as events
            from (
                select ev_key as key, pgtally.sum_delta(ev_delta) as delta, %s as events from (%s) e group by ev_key
            ) summed
        ), packed as (
            insert into pgtally.packed_%s (keys, deltas, events)
            select array_agg(key), array_agg(delta), array_agg(events)
            from (
                select u.*, (row_number() over (order by u.key) - 1) / 100 as pack
                from sums, unnest(keys[$2 + 1:], deltas[$2 + 1:], key_events[$2 + 1:]) u(key, delta, events)
            ) packs
            group by pack
            returning cardinality(keys) as keys
        )
        select s.events, cardinality(s.keys), s.packed_keys + a.carried, s.packed_keys, a.dropped_events, a.locked_ms, a.changed, a.changes, %s, %s
        from (select *, (select coalesce(sum(p.keys), 0) from packed p) as packed_keys from sums where keys is not null offset 0) s,
            pgtally.add_deltas($1, s.keys[:$2], s.deltas[:$2], s.key_events[:$2], $3) a',
        filed, case when filed = '' then 'count(*)' else 'sum(e.events)::bigint' end, batch_events, counter.counter_id,
        case when filed = '' then '0, 0' else '(select f.late_events from filed f), (select f.future_events from filed f)' end,
        case when max_hot_keys > 0
            then '(select json_agg(json_build_array(h.key::text, h.events, h.delta::text)) from (
                select * from unnest(s.keys, s.key_events, s.deltas) u(key, events, delta) order by u.events desc limit $4) h)'
            else 'null::json' end)
    into events, keys, carried, packed, dropped, locked_ms, changed, changes, late, future, hot_keys using counter, keys_at_once, report, max_hot_keys;

    if events is not null then
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events, late_events, future_events)
        values (counter.counter_id, position.end_boundary, boundary, clock_timestamp(),
            position.batches + 1, position.events + apply_batch.events, position.dropped_events + dropped, position.late_events + late, position.future_events + future)
        returning batch_id into version;
        if notify and changed > 0 then
            perform pgtally.notify_applied(counter, version);
        end if;
    end if;
end
$$;
