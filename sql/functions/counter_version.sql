-- counter_version(counter_name): the version of the counter's stored counts; those that the same statement reads belong to it.
--
-- The number of the newest row of batch. Every transaction that tells what it has changed (report, notify) appends one, together with what it changes, and under the consumer's
-- lock, which it holds until it has committed. So versions grow in the order of the commits, a snapshot that shows a version shows all that was changed up to it and
-- nothing that was told with a later one.
--
-- What workers apply that tell nobody may change counts without a new version.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.counter_version(counter_name text) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select (pgtally.consumer_position(k.counter_id)).batch_id from pgtally.require_counter(counter_name) k
$$;
