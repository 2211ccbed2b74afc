-- require_own_cluster(consumer): raises TL005 when the consumer's position was stored in another database cluster, or that of another consumer
-- of its queue, whose events are there, too.
create or replace function pgtally.require_own_cluster(consumer pgtally.consumer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    own_cluster constant bigint := pgtally.system_identifier();
begin
    if exists (select from pgtally.consumer c where c.queue_id = consumer.queue_id and c.system_identifier <> own_cluster) then
        raise exception 'Consumer "%": a position in its queue was stored in another database cluster', consumer.name
            using errcode = 'TL005', hint = 'The database was restored, upgraded or replicated into this cluster, where '
                'transaction ids start elsewhere. Nothing was applied and the events are kept. Run: pgtally rebase';
    end if;
end
$$;
