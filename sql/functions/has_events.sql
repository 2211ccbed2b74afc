-- has_events(queue_id, start_boundary, end_boundary, min_events, max_wait): whether there are so many between the two, or any
-- that has waited so long. Found at the end of the index, see due_counters().
create or replace function pgtally.has_events(queue_id integer, start_boundary pg_snapshot, end_boundary pg_snapshot, min_events integer, max_wait interval)
returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
    enough boolean;
begin
    execute format(
        'select count(*) >= $1 or min(ev_time) <= clock_timestamp() - $2 from (select ev_time from (%s) e limit $1) first',
        pgtally.events_query(queue_id, start_boundary, end_boundary, 'ev_time'))
    into enough using min_events, max_wait;
    return coalesce(enough, false);
end
$$;
