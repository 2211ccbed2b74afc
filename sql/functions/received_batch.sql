-- received_batch(counter, batch): the row of pgtally.received for a batch of export_batch(), were it received.
create or replace function pgtally.received_batch(counter pgtally.counter, batch jsonb) returns pgtally.received
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    received pgtally.received;
begin
    received.counter_id := counter.counter_id;
    received.source_cluster := batch ->> 'cluster';
    received.source_database := batch ->> 'database';
    received.source_queue := batch ->> 'queue';
    received.source_consumer := batch ->> 'consumer';
    received.position := batch ->> 'token';
    received.batch_id := batch ->> 'number';
    return received;
end
$$;
