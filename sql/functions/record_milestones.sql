-- record_milestones(counter, keys, deltas, counts, reached_keys, reached, silent): records the thresholds that add_deltas() has carried these keys over, and hands on
-- those that are new as events of the queue <counter>.milestones: key, delta 1, data {"threshold": n, "value": m}.
--
-- keys, deltas, counts: what was added to which stored count, and what it has become. reached_keys, reached: what corrections say that a key had reached
-- without us (measure), or NULL; up to there nothing is handed on. silent: neither is anything else.
--
-- Each threshold of a key is recorded once for ever, and is handed on by the transaction that records it or never. The caller has locked the keys' rows of the target,
-- so no other transaction is recording anything for them, and the unique index never makes us wait.
--
-- The number of thresholds at or below a value is width_bucket(value, milestones), so those from one value to another are a slice.
create or replace function pgtally.record_milestones(
    counter pgtally.counter, keys anyarray, deltas bigint[], counts bigint[], reached_keys anyarray, reached bigint[], silent boolean
) returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    queue constant pgtally.queue := (select q from pgtally.queue q where q.name = counter.name || '.milestones');
begin
    insert into pgtally.milestone (counter_id, key, threshold, value)
    select counter.counter_id, u.key::text, threshold, u.value
    from unnest(reached_keys, reached) u(key, value), unnest(counter.milestones[:width_bucket(u.value, counter.milestones)]) threshold
    where u.value >= counter.milestones[1]
    on conflict do nothing;

    -- A statement for all, as most batches carry no key over anything.
    execute format(
        'with crossed as (
            insert into pgtally.milestone (counter_id, key, threshold, value)
            select $1, u.key::text, threshold, u.value
            from unnest($2, $3, $4) u(key, delta, value),
                unnest($5[width_bucket(u.value - u.delta, $5) + 1 : width_bucket(u.value, $5)]) threshold
            where u.delta > 0
            on conflict do nothing
            returning key, threshold, value
        )
        insert into pgtally.event_%s (ev_key, ev_delta, ev_data)
        select key::%s, 1, jsonb_build_object(''threshold'', threshold, ''value'', value) from crossed where not $6',
        queue.queue_id, queue.key_type)
    using counter.counter_id, keys, deltas, counts, counter.milestones, silent;
end
$$;
