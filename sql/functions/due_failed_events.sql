-- due_failed_events(consumer_id): those failed events that the consumer's next batch of such would consist of: a hundred at most, or one that is to be alone.
create or replace function pgtally.due_failed_events(consumer_id integer) returns bigint[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    first record;
begin
    select f.failed_event_id, f.alone into first from pgtally.failed_event f
    where f.consumer_id = consumer_id and f.retry_at <= clock_timestamp() and f.batch_id is null order by f.retry_at limit 1;
    if not found then
        return '{}';
    elsif first.alone then
        return array[first.failed_event_id];
    end if;
    return array(
        select f.failed_event_id from pgtally.failed_event f
        where f.consumer_id = consumer_id and f.retry_at <= clock_timestamp() and f.batch_id is null and not f.alone order by f.retry_at limit 100);
end
$$;
