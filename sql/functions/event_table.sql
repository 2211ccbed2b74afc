-- event_table(queue_name): the table of a queue's events, for an INSERT of (ev_key, ev_delta) in the same statement as what it stands for.
--
-- The fastest way to emit, without a function or a trigger; it takes the right to INSERT there. Nobody checks then that each row that
-- is counted has its event: where any program can write to the table, a source with its triggers is the way.
--
-- Errors: TL001 when there is no such queue.
create or replace function pgtally.event_table(queue_name text) returns regclass
language sql stable set search_path = pg_catalog, pg_temp as $$
    select format('pgtally.event_%s', pgtally.queue_id(queue_name))::regclass
$$;
