-- export_batch(batch_id): an open batch as receive_batch() in another database takes it: what tells it from every other one, and its events summed by key; keys
-- of which the sum is 0 are left out.
--
-- In batch: where it is from, its number and token, those of the batch that it follows, and whether it is the first of its consumer. What it follows has no number
-- where it is no batch that was claimed, but where the consumer was registered or moved to. Batches of a consumer are numbered in order, and the one before an open batch is kept (rotate).
--
-- Errors: as get_batch_events().
create or replace function pgtally.export_batch(batch_id bigint, out batch jsonb, out keys text[], out deltas bigint[])
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    select coalesce(array_agg(d.key), '{}'), coalesce(array_agg(d.delta), '{}') into keys, deltas
    from pgtally.get_batch_deltas(batch_id) d where d.delta <> 0;
    select jsonb_build_object('cluster', pgtally.system_identifier(), 'database', current_database(), 'queue', q.name, 'consumer', c.name,
        'number', b.batch_id, 'token', b.token, 'follows', p.token, 'follows_number', case when p.claim > 0 then p.batch_id end, 'is_first', p.batches = 0)
    into strict batch
    from pgtally.batch b join pgtally.consumer c using (consumer_id) join pgtally.queue q using (queue_id),
        lateral (select * from pgtally.batch o where o.consumer_id = b.consumer_id and o.batch_id < b.batch_id order by o.batch_id desc limit 1) p
    where b.batch_id = export_batch.batch_id;
end
$$;
