-- apply_batch(counter_name, max_events): adds the counter's next batch to its target and finishes it.
--
-- All in the caller's transaction, so each event counts exactly once, however often this is tried, by however many
-- workers. Never waits: for another worker (busy is then true and nothing was done), nor for a row of the target (its
-- delta is carried, see add_deltas()).
--
-- events: how many were applied, of how many keys; NULL when there was nothing to do. carried: for how many of the keys
-- the delta could not be added yet. cut: there was more than max_events, so call again (max_events NULL: never cut).
--
-- Errors: TL001 when there is no such counter; TL004, TL005, TL006 as next_boundary(); TL008 as add_deltas(); whatever the
-- target's constraints raise. After an error nothing has changed and the batch is still to come. A cut boundary may take
-- a delete before its insert: if a constraint on the target objects to that, max_events NULL is the way through.
create or replace function pgtally.apply_batch(
    counter_name text, max_events integer default 1000000,
    out busy boolean, out events bigint, out keys integer, out carried integer, out cut boolean
) language plpgsql volatile set search_path = pg_catalog, pg_temp set work_mem = '64MB' as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    consumer pgtally.consumer;
    position pgtally.batch;
    boundary pg_snapshot;
    dropped bigint;
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

    execute format(
        'select s.events, cardinality(s.keys), a.carried, a.dropped_events
        from (
            select array_agg(key) as keys, array_agg(delta) as deltas, array_agg(events) as key_events, sum(events)::bigint as events
            from (
                select ev_key as key, pgtally.sum_delta(ev_delta) as delta, count(*) as events from (%s) e group by ev_key
            ) summed
        ) s, pgtally.add_deltas($1, s.keys, s.deltas, s.key_events) a
        where s.keys is not null',
        pgtally.events_query(consumer.queue_id, position.end_boundary, boundary))
    into events, keys, carried, dropped using counter;

    if events is not null then
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
        values (counter.counter_id, position.end_boundary, boundary, clock_timestamp(),
            position.batches + 1, position.events + apply_batch.events, position.dropped_events + dropped);
    end if;
end
$$;
