-- renew_claim(batch_id, claim, lease): the claim ends so long from now.
--
-- Errors: TL011 as lock_batch().
create or replace function pgtally.renew_claim(batch_id bigint, claim integer, lease interval) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtally.lock_batch(batch_id, claim);
    update pgtally.batch b set claimed_until = clock_timestamp() + lease where b.batch_id = renew_claim.batch_id;
end
$$;
