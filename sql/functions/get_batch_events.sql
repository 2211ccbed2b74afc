-- get_batch_events(batch_id): the events of an open batch, in the order of their transactions' ids.
--
-- May be read as often as wanted, or not at all: finish_batch() ends the whole batch. The key is given as text.
--
-- Errors: TL001 when there is no open batch of that number; TL004 when the transaction is not READ COMMITTED (an older
-- snapshot could miss some of the events).
create or replace function pgtally.get_batch_events(batch_id bigint)
returns table (ev_txid xid8, ev_time timestamptz, ev_key text, ev_delta bigint, ev_data jsonb)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    batch record;
begin
    perform pgtally.require_read_committed();
    select c.queue_id, b.start_boundary, b.end_boundary into batch
    from pgtally.batch b join pgtally.consumer c using (consumer_id)
    where b.batch_id = get_batch_events.batch_id and b.finished_at is null;
    if not found then
        raise exception 'There is no open batch %', get_batch_events.batch_id
            using errcode = 'TL001', hint = 'Take the number from next_batch(); a finished batch is not given again.';
    end if;
    return query execute format('select ev_txid, ev_time, ev_key::text, ev_delta, ev_data from (%s) e order by ev_txid',
        pgtally.events_query(batch.queue_id, batch.start_boundary, batch.end_boundary));
end
$$;
