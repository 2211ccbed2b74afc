-- slot_waits_for(queue_id, slot): the consumers that have not finished all events in the slot, by name. While there is one, the slot is not emptied.
--
-- A consumer whose position is another cluster's has finished none. Of the index, only the end is read (see due_counters()). Of the queue, not of the slot, so that whoever may read the events' times may call it.
create or replace function pgtally.slot_waits_for(queue_id integer, slot integer) returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
declare
    consumer record;
    unfinished boolean;
    names text[] := '{}';
begin
    for consumer in
        select c.name, c.system_identifier = pgtally.system_identifier() as own_cluster, pgtally.unfinished_since(c.consumer_id) as boundary
        from pgtally.consumer c where c.queue_id = queue_id order by c.name
    loop
        execute format(
            case when consumer.own_cluster
                then 'select exists (select from pgtally.event_%1$s where ev_slot = %2$s and ev_txid >= $1) or exists (select from pgtally.event_%1$s where ev_slot = %2$s and ev_txid = any ($2))'
                else 'select exists (select from pgtally.event_%1$s where ev_slot = %2$s)' end, queue_id, slot)
        into unfinished
        using pg_snapshot_xmax(consumer.boundary), array(select pg_snapshot_xip(consumer.boundary));
        if unfinished then
            names := names || consumer.name;
        end if;
    end loop;
    return names;
end
$$;
