-- get_batch_deltas(batch_id): the events of an open batch, summed by key; the key as text.
--
-- Errors: as get_batch_events().
create or replace function pgtally.get_batch_deltas(batch_id bigint)
returns table (key text, delta bigint, events bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp set work_mem = '64MB' as $$
begin
    return query execute format(
        'select ev_key::text, pgtally.sum_delta(ev_delta), count(*) from (%s) e group by ev_key
        union all select ev_key, pgtally.sum_delta(ev_delta), count(*) from pgtally.failed_event where batch_id = %L group by ev_key',
        pgtally.batch_query(batch_id, 'ev_key, ev_delta'), batch_id);
end
$$;
