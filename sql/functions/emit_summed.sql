-- emit_summed(queue_id, selection): PL/pgSQL text that inserts the selected keys and deltas, summed by key.
--
-- The user's columns are out of sight where the variable `slot` stands, so one of that name does no harm.
create or replace function pgtally.emit_summed(queue_id integer, selection text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select format(
        'insert into pgtally.event_%1$s (ev_slot, ev_key, ev_delta)
            select slot, changed.key, pgtally.sum_delta(changed.delta) from (%2$s) changed(key, delta)
            group by changed.key having pgtally.sum_delta(changed.delta) operator(pg_catalog.<>) 0;',
        queue_id, selection)
$$;
