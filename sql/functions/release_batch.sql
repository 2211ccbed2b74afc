-- release_batch(batch_id, claim, retry_in, reason, max_attempts): gives back a claimed batch that could not be handled.
--
-- It is given again after that time, to whoever comes. A batch of failed events is ended: these are given again one by one, and one that was alone has failed once
-- more; having failed max_attempts times it becomes a dead letter.
--
-- Errors: TL011 as lock_batch().
create or replace function pgtally.release_batch(batch_id bigint, claim integer, retry_in interval, reason text, max_attempts integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    failed constant bigint[] := array(select f.failed_event_id from pgtally.failed_event f where f.batch_id = batch_id);
begin
    perform pgtally.renew_claim(batch_id, claim, retry_in);
    if cardinality(failed) = 0 then
        return;
    elsif cardinality(failed) > 1 then
        update pgtally.failed_event f set alone = true, batch_id = null where f.failed_event_id = any (failed);
    else
        update pgtally.failed_event f
        set attempts = f.attempts + 1, reason = release_batch.reason, failed_at = clock_timestamp(), batch_id = null,
            retry_at = case when f.attempts + 1 < max_attempts then clock_timestamp() + retry_in end
        where f.failed_event_id = any (failed);
    end if;
    perform pgtally.finish_batch(batch_id, claim);
end
$$;
