-- batch_query(batch_id, columns): the SQL text of a query for the events of an open batch.
--
-- Errors: TL001 when there is no open batch of that number; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.batch_query(batch_id bigint, columns text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    batch record;
begin
    perform pgtally.require_read_committed();
    select c.queue_id, b.start_boundary, b.end_boundary into batch
    from pgtally.batch b join pgtally.consumer c using (consumer_id)
    where b.batch_id = batch_query.batch_id and b.finished_at is null;
    if not found then
        raise exception 'There is no open batch %', batch_query.batch_id
            using errcode = 'TL001', hint = 'Take the number from next_batch() or claim_batch(); a finished batch is not given again.';
    end if;
    return pgtally.events_query(batch.queue_id, batch.start_boundary, batch.end_boundary, columns);
end
$$;
