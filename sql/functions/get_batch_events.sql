-- get_batch_events(batch_id): the events of an open batch, in the order of their transactions' ids, and in that of time within each.
--
-- May be read as often as wanted, or not at all: finish_batch() ends the whole batch. The key is given as text. ev_id is the event's identity in this
-- cluster, the same each time it is given: transaction id, slot, page and line. attempts: how often it was handled in vain (fail_event()).
--
-- Errors: TL001 when there is no open batch of that number; TL004 when the transaction is not READ COMMITTED (an older
-- snapshot could miss some of the events).
create or replace function pgtally.get_batch_events(batch_id bigint)
returns table (ev_id text, ev_txid xid8, ev_time timestamptz, ev_key text, ev_delta bigint, ev_data jsonb, attempts integer)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    return query execute format(
        'select ev_txid || ''.'' || ev_slot || translate(ctid::text, ''(,)'', ''..''), ev_txid, ev_time, ev_key::text, ev_delta, ev_data, 0
        from (%s) e order by ev_txid, ev_time',
        pgtally.batch_query(batch_id, 'ctid, *'));
    return query
        select f.ev_id, split_part(f.ev_id, '.', 1)::xid8, f.ev_time, f.ev_key, f.ev_delta, f.ev_data, f.attempts
        from pgtally.failed_event f where f.batch_id = get_batch_events.batch_id order by f.failed_event_id;
end
$$;
