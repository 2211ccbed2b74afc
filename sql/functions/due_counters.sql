-- due_counters(seen): the counters that have something to apply, for a worker that polls.
--
-- events: there are events to be had. carried: something is carried. Assigns no transaction id. seen: the snapshot of
-- an earlier call that found nothing; while no transaction has finished since, there can be nothing new, and no counter is
-- looked at. A counter whose boundary is another cluster's is due while there is any event, so that apply_batch() says why
-- it cannot go on.
--
-- Slots have no statistics, and without an upper end the planner takes a third of a slot for pending: it would read all that is consumed, 100 ms for a million
-- events, instead of looking at the end of the index.
create or replace function pgtally.due_counters(seen pg_snapshot default null)
returns table (name text, events boolean, carried boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp 
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
    own_cluster constant bigint := pgtally.system_identifier();
    counter record;
begin
    if seen::text = pg_current_snapshot()::text then
        return;
    end if;
    for counter in
        select k.counter_id, k.name, c.queue_id, p.end_boundary, c.system_identifier
        from pgtally.counter k
        join pgtally.consumer c on c.consumer_id = k.counter_id,
        -- As consumer_position(), written out: this is what an idle worker spends its time on.
        lateral (select b.end_boundary from pgtally.batch b where b.consumer_id = k.counter_id order by b.batch_id desc limit 1) p
    loop
        execute format('select exists (%s), exists (select from pgtally.carried_%s)',
            case when counter.system_identifier = own_cluster
                then pgtally.events_query(counter.queue_id, counter.end_boundary, null)
                else format('select from pgtally.event_%s', counter.queue_id) end,
            counter.counter_id)
        into due_counters.events, due_counters.carried;
        if due_counters.events or due_counters.carried then
            due_counters.name := counter.name;
            return next;
        end if;
    end loop;
end
$$;
