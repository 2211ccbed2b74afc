-- emit_single(queue_id, selection): PL/pgSQL text that inserts the key and delta of one row into the slot of the time.
--
-- Three static statements rather than one on the partitioned table, which would look for the partition each time.
create or replace function pgtally.emit_single(queue_id integer, selection text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select string_agg(format(
        '%s slot operator(pg_catalog.=) %s then
            insert into pgtally.event_%s_%2$s (ev_slot, ev_key, ev_delta) select %2$s, %4$s; ',
        case slot when 0 then 'if' else 'elsif' end, slot, queue_id, selection), '' order by slot) || 'end if;'
    from generate_series(0, 2) slot
$$;
