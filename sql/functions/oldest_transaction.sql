-- oldest_transaction(): when the oldest transaction that this role can see began, prepared ones included; NULL for none.
--
-- pg_stat_activity shows other roles' sessions in full to members of pg_read_all_stats only.
create or replace function pgtally.oldest_transaction() returns timestamptz
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select min(began) from (
        select xact_start as began from pg_stat_activity where pid <> pg_backend_pid()
        union all select prepared from pg_prepared_xacts
    ) transactions
$$;
