-- skip(queue_name, consumer_name): passes over everything that is pending; the consumer goes on with what commits from now on.
--
-- Open batches are forgotten; whoever is at work on one is waited for, and finds that it is not his any more. Failed events stay. Returns how many
-- events were passed over.
--
-- Errors: TL001 when there is no such queue or consumer; TL004 when the transaction is not READ COMMITTED; TL005 as require_own_cluster(); TL010 when
-- it is a counter.
create or replace function pgtally.skip(queue_name text, consumer_name text) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    consumer pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
    boundary pg_snapshot;
    position pgtally.batch;
    skipped bigint;
begin
    perform pgtally.lock_consumer(queue_name, consumer_name);
    perform pgtally.require_own_cluster(consumer);
    -- finish_batch() does not lock the consumer.
    perform from pgtally.batch b where b.consumer_id = consumer.consumer_id for update;
    boundary := pgtally.current_boundary();
    position := pgtally.consumer_position(consumer.consumer_id);
    execute format('select count(*) from (%s) e', pgtally.events_query(consumer.queue_id, pgtally.unfinished_since(consumer.consumer_id), boundary)) into skipped;
    update pgtally.failed_event f set batch_id = null where f.consumer_id = consumer.consumer_id and f.batch_id is not null;
    delete from pgtally.batch b where b.consumer_id = consumer.consumer_id and b.finished_at is null;
    insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
    values (consumer.consumer_id, boundary, boundary, clock_timestamp(), position.batches, 0, 0);
    return skipped;
end
$$;
