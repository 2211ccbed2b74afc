-- due_batch(queue_name, consumer_name, min_events, max_wait, in_order): whether claim_batch() with these arguments would give a batch, if nobody is
-- faster; for a process that polls. Assigns no transaction id.
--
-- Errors: TL001 when there is no such queue or consumer; TL005 as require_own_cluster(); TL010 when it is a counter.
create or replace function pgtally.due_batch(
    queue_name text, consumer_name text, min_events integer default 1, max_wait interval default '0', in_order boolean default true
) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
    open_batches integer;
    claimable boolean;
begin
    if consumer.paused_at is not null then
        return false;
    end if;
    perform pgtally.require_own_cluster(consumer);
    select count(*), coalesce(bool_or(b.claimed_until <= clock_timestamp()), false) into open_batches, claimable
    from pgtally.batch b where b.consumer_id = consumer.consumer_id and b.finished_at is null;
    if claimable or in_order and open_batches > 0 then
        return claimable;
    end if;
    return pgtally.due_failed_events(consumer.consumer_id) <> '{}'
        or pgtally.has_events(consumer.queue_id, (pgtally.consumer_position(consumer.consumer_id)).end_boundary, null, min_events, max_wait);
end
$$;
