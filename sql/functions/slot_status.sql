-- slot_status(): one row for each slot that holds events, at a price that does not grow with their number.
--
-- slot_table: the slot itself. bytes: its size with its index. oldest, newest: about when its events were written, by the first and the last thousand in the order of their
-- transactions. waits_for: the consumers that have not finished all of its events, where the oldest is older than a slot is kept as a rule
-- (four rotation periods and a minute): overdue. A slot that is overdue and waits for nobody is held by a transaction that has written there or reads it, or nobody calls rotate().
create or replace function pgtally.slot_status()
returns table (queue text, slot integer, slot_table regclass, bytes bigint, oldest timestamptz, newest timestamptz, overdue boolean, waits_for text[])
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
    own_cluster constant bigint := pgtally.system_identifier();
    found_slot record;
    events text;
    consumer record;
    unconsumed boolean;
begin
    for found_slot in
        select q.queue_id, q.name, q.rotation_period, s as number, format('pgtally.event_%s_%s', q.queue_id, s)::regclass as slot_table
        from pgtally.queue q, generate_series(0, 2) s order by q.name, s
    loop
        continue when pg_relation_size(found_slot.slot_table) = 0;
        queue := found_slot.name;
        slot := found_slot.number;
        slot_table := found_slot.slot_table;
        bytes := pg_total_relation_size(slot_table);
        -- Of the queue, not of the slot, so that whoever may read the events' times may call this.
        events := format('pgtally.event_%s where ev_slot = %s', found_slot.queue_id, found_slot.number);
        execute format(
            'select (select min(f.ev_time) from (select ev_time from %1$s order by ev_txid limit 1000) f),
                (select max(l.ev_time) from (select ev_time from %1$s order by ev_txid desc limit 1000) l)', events)
        into oldest, newest;
        overdue := coalesce(oldest < clock_timestamp() - 4 * found_slot.rotation_period - interval '1 minute', false);
        waits_for := '{}';
        if overdue then
            for consumer in
                select c.name, c.system_identifier, pgtally.unfinished_since(c.consumer_id) as boundary
                from pgtally.consumer c where c.queue_id = found_slot.queue_id order by c.name
            loop
                execute format('select exists (select from %1$s and ev_txid >= $1) or exists (select from %1$s and ev_txid = any ($2))', events)
                into unconsumed
                using pg_snapshot_xmax(consumer.boundary), array(select pg_snapshot_xip(consumer.boundary));
                if unconsumed or consumer.system_identifier <> own_cluster then
                    waits_for := waits_for || consumer.name;
                end if;
            end loop;
        end if;
        return next;
    end loop;
end
$$;
