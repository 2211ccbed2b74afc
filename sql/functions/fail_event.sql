-- fail_event(queue_name, consumer_name, …): keeps an event that the consumer could not handle, in the transaction that finishes its batch.
--
-- retry_in: after that time it is given again, with other failed events; NULL makes it a dead letter at once. attempts: how often it was handled in vain.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.fail_event(
    queue_name text, consumer_name text, ev_id text, ev_time timestamptz, ev_key text, ev_delta bigint, ev_data jsonb,
    attempts integer, reason text, retry_in interval default null
) returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
begin
    insert into pgtally.failed_event (consumer_id, ev_id, ev_time, ev_key, ev_delta, ev_data, attempts, reason, retry_at)
    values (consumer.consumer_id, ev_id, ev_time, ev_key, ev_delta, ev_data, attempts, reason, clock_timestamp() + retry_in);
end
$$;
