-- counter_status(): one row for each counter: what it counts and where it stands.
--
-- pending_events, lag: the events that have committed and are not applied yet, and the age of the oldest (of those carried,
-- too). carried_keys: keys of which something waits for a locked row. events, batches: applied so far. dropped_events:
-- events whose key had no row in the target. late_events, future_events: see add_to_buckets(). problems: see counter_problems(). Where the position is another cluster's,
-- every event there is counts as pending. Counts what is pending, so it takes as long as a batch of that size would.
create or replace function pgtally.counter_status()
returns table (
    name text, queue text, source text, target text, pending_events bigint, lag interval, carried_keys bigint,
    events bigint, batches bigint, dropped_events bigint, late_events bigint, future_events bigint, last_batch_at timestamptz, last_error text, last_error_at timestamptz, problems text[]
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    counter record;
begin
    for counter in
        select k.*, c.queue_id, c.system_identifier = pgtally.system_identifier() as own_cluster, c.last_error, c.last_error_at, q.name as queue_name, s.source_table, p as position
        from pgtally.counter k
        join pgtally.consumer c on c.consumer_id = k.counter_id
        join pgtally.queue q using (queue_id)
        left join pgtally.source s using (queue_id),
        lateral pgtally.consumer_position(k.counter_id) p
        order by k.name
    loop
        name := counter.name;
        queue := counter.queue_name;
        source := counter.source_table::text;
        target := format('%s.%I', counter.target_table, counter.target_column);
        events := (counter.position).events;
        batches := (counter.position).batches;
        dropped_events := (counter.position).dropped_events;
        late_events := (counter.position).late_events;
        future_events := (counter.position).future_events;
        last_batch_at := case when batches > 0 then (counter.position).finished_at end;
        last_error := counter.last_error;
        last_error_at := counter.last_error_at;
        problems := pgtally.counter_problems(counter.name);
        execute format(
            'select p.events, coalesce(clock_timestamp() - least(p.oldest, c.oldest), interval ''0''), c.keys
            from (select count(*) as events, min(ev_time) as oldest from (%s) e) p,
                (select count(distinct key) as keys, min(since) as oldest from pgtally.carried_%s) c',
            case when counter.own_cluster
                then pgtally.events_query(counter.queue_id, (counter.position).end_boundary, null, 'ev_time')
                else format('select ev_time from pgtally.event_%s', counter.queue_id) end,
            counter.counter_id)
        into pending_events, lag, carried_keys;
        return next;
    end loop;
end
$$;
