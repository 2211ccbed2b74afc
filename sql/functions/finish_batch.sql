-- finish_batch(batch_id): ends the batch; the consumer's next one begins where this one ended.
--
-- Whatever the transaction has done besides commits together with it. Of two workers that were given the same
-- batch, the second gets an error, so that its work is rolled back.
--
-- Errors: TL001 when there is no open batch of that number.
create or replace function pgtally.finish_batch(batch_id bigint) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    update pgtally.batch b set finished_at = clock_timestamp(), batches = b.batches + 1
    where b.batch_id = finish_batch.batch_id and b.finished_at is null;
    if not found then
        raise exception 'There is no open batch %', batch_id
            using errcode = 'TL001', hint = 'It was finished already, perhaps by another worker: roll this transaction back.';
    end if;
end
$$;
