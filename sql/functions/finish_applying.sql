-- finish_applying(counter, dropped_events, changed, report, notify): the end of a transaction that has added to a counter's target outside a batch.
--
-- Adds to the total of dropped events. Where somebody is told what was changed (report, notify), that gets a version: the number of a new row of batch, which repeats
-- the position. So the newest row of batch is the version of all that is stored, in any one snapshot (counter_version).
--
-- The caller holds the consumer's lock, unless nothing was dropped and nobody is told. Returns the number of the row; NULL when none was needed.
create or replace function pgtally.finish_applying(counter pgtally.counter, dropped_events bigint, changed bigint, report boolean, notify boolean) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    told constant boolean := (report or notify) and changed > 0;
    position pgtally.batch;
    version bigint;
begin
    if told or dropped_events > 0 then
        position := pgtally.consumer_position(counter.counter_id);
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events, late_events, future_events)
        values (counter.counter_id, position.end_boundary, position.end_boundary, clock_timestamp(),
            position.batches, position.events, position.dropped_events + coalesce(finish_applying.dropped_events, 0),
            position.late_events, position.future_events)
        returning batch_id into version;
    end if;
    if told and notify then
        perform pgtally.notify_applied(counter, version);
    end if;
    return version;
end
$$;
