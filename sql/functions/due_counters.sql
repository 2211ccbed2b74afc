-- due_counters(seen): the counters that have something to apply, for a worker that polls.
--
-- events: there are events to be had. carried: something is carried. Assigns no transaction id. seen: the snapshot of
-- an earlier call that found nothing; while no transaction has finished since, there can be nothing new, and no counter is
-- looked at.
create or replace function pgtally.due_counters(seen pg_snapshot default null)
returns table (name text, events boolean, carried boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    counter record;
begin
    if seen::text = pg_current_snapshot()::text then
        return;
    end if;
    for counter in
        select k.counter_id, k.name, c.queue_id, p.end_boundary
        from pgtally.counter k
        join pgtally.consumer c on c.consumer_id = k.counter_id,
        lateral pgtally.consumer_position(k.counter_id) p
    loop
        execute format('select exists (%s), exists (select from pgtally.carry_%s)',
            pgtally.events_query(counter.queue_id, counter.end_boundary, null), counter.counter_id)
        into due_counters.events, due_counters.carried;
        if due_counters.events or due_counters.carried then
            due_counters.name := counter.name;
            return next;
        end if;
    end loop;
end
$$;
