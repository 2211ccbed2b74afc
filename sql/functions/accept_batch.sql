-- accept_batch(counter_name, batch): makes that batch the one which receive_batch() takes next from there, whatever was received before; for an operator, after
-- TL012, whose hint has the whole call.
--
-- Where it goes on from another database's position, that database has none any more: from now on its batches are refused.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.accept_batch(counter_name text, batch jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    source constant pgtally.received := pgtally.received_batch(pgtally.require_counter(counter_name), batch);
    follows constant uuid := batch ->> 'follows';
begin
    delete from pgtally.received r where r.counter_id = source.counter_id and r.position = follows;
    insert into pgtally.received as r (counter_id, source_cluster, source_database, source_queue, source_consumer, position, batch_id)
    values (source.counter_id, source.source_cluster, source.source_database, source.source_queue, source.source_consumer, follows, coalesce((batch ->> 'follows_number')::bigint, 0))
    on conflict (counter_id, source_cluster, source_database, source_queue, source_consumer) do update
    set position = excluded.position, batch_id = excluded.batch_id, received_at = clock_timestamp();
end
$$;
