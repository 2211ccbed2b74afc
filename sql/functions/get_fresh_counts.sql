-- get_fresh_counts(counter_name, keys): the exact counts of these keys, each key as it was given: stored + carried + pending, however far
-- the worker is behind.
--
-- All in the snapshot of the caller's statement; so in a transaction of its own it includes what that has emitted so far.
-- A key without a row in the target has the count 0 where on_missing is drop, since whatever is still pending for it will be dropped.
-- Reads through the counter's pending events, so it takes longer the more there are.
--
-- Errors: TL001 when there is no such counter; TL003 when its target was dropped; TL004 as require_young_snapshot(); TL005 as require_own_cluster(); 22P02 when a key is not of the queue's type.
create or replace function pgtally.get_fresh_counts(counter_name text, keys text[])
returns table (key text, stored bigint, carried bigint, pending bigint)
language plpgsql stable
-- The slots have no statistics, without which the planner would read them whole, and sort what it finds.
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_sort = off as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
begin
    perform pgtally.require_table(counter.name, 'target', counter.target_table);
    perform pgtally.require_own_cluster(consumer);
    return query execute format(
        'select given.key, coalesce(parts.stored, 0), coalesce(parts.carried, 0), coalesce(parts.pending, 0)
        from unnest($1, $1::%1$s[]) given(key, typed)
        left join (
            select key, pgtally.sum_delta(stored) as stored, pgtally.sum_delta(carried) as carried, pgtally.sum_delta(pending) as pending
            from (
                select %2$I::%1$s as key, coalesce(%3$I, 0)::bigint as stored, 0::bigint as carried, 0::bigint as pending
                from %4$s where %2$I = any ($1::%1$s[])
                union all select key, null, delta, 0 from pgtally.carried_%5$s where key = any ($1::%1$s[])
                union all select ev_key, null, 0, pgtally.sum_delta(ev_delta) from (%6$s) e where ev_key = any ($1::%1$s[]) group by ev_key
            ) all_parts
            group by key %7$s
        ) parts on parts.key = given.typed',
        pgtally.key_type(counter), counter.target_key, counter.target_column, counter.target_table, counter.counter_id,
        -- In a stable function, position and events are seen in one snapshot.
        pgtally.events_query(consumer.queue_id, (pgtally.consumer_position(counter.counter_id)).end_boundary, null, 'ev_key, ev_delta'),
        case counter.on_missing when 'drop' then 'having count(stored) > 0' else '' end)
    using keys;
    -- Not before: now the slots are locked. No rotation period is shorter than a second; but a standby may go through a period in no time.
    if pg_is_in_recovery() or clock_timestamp() - transaction_timestamp() > interval '0.9 seconds' then
        perform pgtally.require_young_snapshot(consumer.queue_id);
    end if;
end
$$;
