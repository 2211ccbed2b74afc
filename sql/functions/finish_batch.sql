-- finish_batch(batch_id, claim): ends the batch; a later one begins where this one ended.
--
-- claim: what claim_batch() gave; without it for a batch of next_batch(). Whatever the transaction has done besides commits together with it. Of two
-- workers that were given the same batch, the second gets an error, so that its work is rolled back.
--
-- Errors: TL001 when there is no open batch of that number; TL011 when it is another's (any more).
create or replace function pgtally.finish_batch(batch_id bigint, claim integer default 0) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    update pgtally.batch b set finished_at = clock_timestamp()
    where b.batch_id = finish_batch.batch_id and b.finished_at is null and b.claim = finish_batch.claim;
    if not found then
        if exists (select from pgtally.batch b where b.batch_id = finish_batch.batch_id and b.finished_at is null) then
            perform pgtally.lock_batch(batch_id, claim);
        end if;
        raise exception 'There is no open batch %', batch_id
            using errcode = 'TL001', hint = 'It was finished already, perhaps by another worker: roll this transaction back.';
    end if;
    delete from pgtally.failed_event f where f.batch_id = finish_batch.batch_id;
end
$$;
