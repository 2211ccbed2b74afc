-- slot_is_consumed(queue_id, slot): whether every consumer of the queue has been past each event in the slot for a while.
--
-- For a minute, or for the rotation period where that is shorter, so that a reader whose snapshot is younger than that does
-- not lose sight of events which were pending for it. A consumer that has no boundary of that age yet, or one of another
-- cluster, says no. Without consumers the answer is yes.
create or replace function pgtally.slot_is_consumed(queue_id integer, slot integer) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    consumer record;
    unconsumed boolean;
begin
    for consumer in
        select c.system_identifier, b.end_boundary
        from pgtally.consumer c left join lateral pgtally.settled_batch(c.consumer_id) b on true
        where c.queue_id = queue_id
    loop
        if consumer.end_boundary is null or consumer.system_identifier <> pgtally.system_identifier() then
            return false;
        end if;
        execute format(
            'select exists (select from pgtally.event_%1$s_%2$s where ev_txid >= $1)
                or exists (select from pgtally.event_%1$s_%2$s where ev_txid = any ($2))', queue_id, slot)
        into unconsumed
        using pg_snapshot_xmax(consumer.end_boundary), array(select pg_snapshot_xip(consumer.end_boundary));
        if unconsumed then
            return false;
        end if;
    end loop;
    return true;
end
$$;
