-- next_batch(queue_name, consumer_name, max_events): opens the consumer's next batch and returns its number.
--
-- Returns the same batch until finish_batch() ends it, and NULL when there is no event to be had. Waits for another
-- transaction that is at work for this consumer. max_events: see next_boundary(); NULL for no limit. For several processes, see claim_batch().
--
-- Errors: TL001 when there is no such queue or consumer; TL004, TL005, TL006 as next_boundary(); TL010 when it is a counter, or
-- when its batches are claimed.
create or replace function pgtally.next_batch(queue_name text, consumer_name text, max_events integer default 100000)
returns bigint language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.lock_consumer(queue_name, consumer_name);
    consumer pgtally.consumer;
    position pgtally.batch;
    boundary pg_snapshot;
    found_event boolean;
begin
    -- In statements of their own, after the lock.
    consumer := pgtally.require_reader(queue_name, consumer_name);
    position := pgtally.consumer_position(id);
    select n.boundary into boundary from pgtally.next_boundary(consumer, position.end_boundary, max_events) n;
    if position.finished_at is null and position.claim = 0 then
        return position.batch_id;
    elsif exists (select from pgtally.batch b where b.consumer_id = id and b.finished_at is null) then
        raise exception 'Consumer "%" of queue "%" has a claimed batch', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Use claim_batch(), or a consumer of another name.';
    elsif consumer.paused_at is not null then
        return null;
    end if;
    execute format('select exists (%s)', pgtally.events_query(consumer.queue_id, position.end_boundary, boundary)) into found_event;
    if not found_event then
        return null;
    end if;
    insert into pgtally.batch (consumer_id, start_boundary, end_boundary, batches, events, dropped_events)
    values (id, position.end_boundary, boundary, position.batches + 1, 0, 0)
    returning batch_id into position.batch_id;
    return position.batch_id;
end
$$;
