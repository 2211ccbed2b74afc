-- require_own_cluster(consumer): raises TL005 when the consumer's position was stored in another database cluster.
create or replace function pgtally.require_own_cluster(consumer pgtally.consumer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if consumer.system_identifier <> pgtally.system_identifier() then
        raise exception 'Consumer "%": its position was stored in another database cluster', consumer.name
            using errcode = 'TL005', hint = 'The database was restored, upgraded or replicated into this cluster, where '
                'transaction ids start elsewhere. Nothing was applied and the events are kept. Run: pgtally rebase';
    end if;
end
$$;
