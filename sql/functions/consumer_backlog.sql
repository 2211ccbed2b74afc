-- consumer_backlog(): how far behind each consumer is, counters included, at a price that does not grow with the backlog.
--
-- queue, consumer: their names; counter: whether it is one. pending_since: about when the oldest event that it has not finished was written, by the first thousand of
-- them in the order of their transactions; NULL when there is none. carried_since: when the oldest delta that a counter has carried was taken from the queue.
-- last_batch_at: when it last finished a batch; NULL when it has finished none. open_batches: given and not finished, and claimed_until: until when the
-- last of these is somebody's. foreign_cluster: its position is another database cluster's, so all events there are pending.
--
-- counter_status() and consumer_status() count what is pending, and take longer the more that is.
create or replace function pgtally.consumer_backlog()
returns table (
    queue text, consumer text, counter boolean, pending_since timestamptz, carried_since timestamptz, last_batch_at timestamptz,
    open_batches bigint, claimed_until timestamptz, paused_at timestamptz, last_error text, last_error_at timestamptz, foreign_cluster boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
    own_cluster constant bigint := pgtally.system_identifier();
    found_consumer record;
begin
    for found_consumer in
        select c.*, q.name as queue_name, k.counter_id is not null as is_counter, pgtally.unfinished_since(c.consumer_id) as boundary
        from pgtally.consumer c
        join pgtally.queue q using (queue_id)
        left join pgtally.counter k on k.counter_id = c.consumer_id
        order by q.name, c.name
    loop
        queue := found_consumer.queue_name;
        consumer := found_consumer.name;
        counter := found_consumer.is_counter;
        paused_at := found_consumer.paused_at;
        last_error := found_consumer.last_error;
        last_error_at := found_consumer.last_error_at;
        foreign_cluster := found_consumer.system_identifier <> own_cluster;
        -- Ordered, so that the index gives the first ones, and not those of whichever slot comes first.
        execute format('select min(e.ev_time) from (select e.ev_time from (%s) e order by e.ev_txid limit 1000) e',
            case when foreign_cluster then format('select ev_txid, ev_time from pgtally.event_%s', found_consumer.queue_id)
                else pgtally.events_query(found_consumer.queue_id, found_consumer.boundary, null, 'ev_txid, ev_time') end)
        into pending_since;
        carried_since := null;
        if counter then
            execute format('select min(c.since) from (select since from pgtally.carried_%s limit 1000) c', found_consumer.consumer_id) into carried_since;
        end if;
        -- Backwards through the index: those of long ago may be many where a transaction keeps dead ones.
        select b.finished_at into last_batch_at from pgtally.batch b
        where b.consumer_id = found_consumer.consumer_id and b.finished_at is not null and b.batches > 0 order by b.batch_id desc limit 1;
        select count(*), max(b.claimed_until) into open_batches, claimed_until
        from pgtally.batch b where b.consumer_id = found_consumer.consumer_id and b.finished_at is null;
        return next;
    end loop;
end
$$;
