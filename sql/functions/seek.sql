-- seek(queue_name, consumer_name, since): sets a consumer back, so that it is given again what was emitted since then, as far as it is
-- still there.
--
-- Events are kept for the queue's `retain` at least. Whole transactions are given again: those with an event since then, and all that were given
-- a later number. An open batch is forgotten. Returns the number of events that the consumer has before it now. Never moves
-- a consumer on.
--
-- Errors: TL001 when there is no such queue or consumer; TL004 when the transaction is not READ COMMITTED; TL005 as require_own_cluster();
-- TL010 when it is a counter, which would count them twice.
create or replace function pgtally.seek(queue_name text, consumer_name text, since timestamptz) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.lock_consumer(queue_name, consumer_name);
    consumer pgtally.consumer;
    position pgtally.batch;
    boundary pg_snapshot;
    first_txid xid8;
    before_it bigint;
begin
    perform pgtally.require_read_committed();
    -- rotate() locks it FOR UPDATE: until this ends, no slot is emptied.
    perform from pgtally.queue q where q.name = queue_name for key share;
    if exists (select from pgtally.counter k where k.counter_id = id) then
        raise exception 'Consumer "%" of queue "%" is a counter, which would count events twice', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Register a consumer of another name.';
    end if;
    -- finish_batch() does not lock the consumer.
    perform from pgtally.batch b where b.consumer_id = id for update;
    select c.* into consumer from pgtally.consumer c where c.consumer_id = id;
    perform pgtally.require_own_cluster(consumer);
    position := pgtally.consumer_position(id);
    boundary := pgtally.unfinished_since(id);
    execute format('select ev_txid from pgtally.event_%s where ev_time >= $1 order by ev_txid limit 1', consumer.queue_id) into first_txid using since;
    if first_txid < pg_snapshot_xmax(boundary) then
        boundary := pgtally.cut_boundary(boundary, first_txid);
    end if;
    update pgtally.failed_event f set batch_id = null where f.consumer_id = id and f.batch_id is not null;
    -- With none of the old rows: rotate() would take a later one for settled.
    delete from pgtally.batch b where b.consumer_id = id;
    insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
    values (id, boundary, boundary, clock_timestamp(), position.batches, 0, 0);
    execute format('select count(*) from (%s) e', pgtally.events_query(consumer.queue_id, boundary, null)) into before_it;
    return before_it;
end
$$;
