-- claim_batch(queue_name, consumer_name, lease, …): gives the caller a batch that is its own for so long: processes share a consumer's batches.
--
-- To be committed at once. What is given: the oldest open batch whose claim has ended and at which no transaction is at work (lock_batch()), as its
-- holder has died or put it off; else a new batch: of max_events at most (see next_boundary()), if there are min_events, or
-- fewer of which the first was written max_wait ago; or a new batch of failed events whose time has come (fail_event()). With in_order, no new batch is opened while one is open: batches are finished one after the other.
--
-- claim: to be shown to lock_batch(), renew_claim() and finish_batch(); a later claim of the same batch makes this one void. It says how often the batch has
-- been given. cut: there is more. token: what tells the batch from every other one, also where numbers are given out again (a restored backup). NULL when there is nothing to do, when the consumer is paused, or when another process is claiming in this moment.
--
-- Errors: as next_batch().
create or replace function pgtally.claim_batch(
    queue_name text, consumer_name text, lease interval, max_events integer default 10000, min_events integer default 1,
    max_wait interval default '0', in_order boolean default true, out batch_id bigint, out claim integer, out cut boolean, out token uuid
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    consumer pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
    position pgtally.batch;
    boundary pg_snapshot;
    failed bigint[];
begin
    perform from pgtally.consumer c where c.consumer_id = consumer.consumer_id for update skip locked;
    if not found then
        return;
    end if;
    -- As it is now, in a statement after the lock.
    select * into strict consumer from pgtally.consumer c where c.consumer_id = consumer.consumer_id;
    if consumer.paused_at is not null then
        return;
    end if;
    position := pgtally.consumer_position(consumer.consumer_id);
    select n.boundary, n.cut into boundary, cut from pgtally.next_boundary(consumer, position.end_boundary, max_events) n;

    update pgtally.batch b set claim = b.claim + 1, claimed_until = clock_timestamp() + lease
    where b.batch_id = (
        select o.batch_id from pgtally.batch o
        where o.consumer_id = consumer.consumer_id and o.finished_at is null and o.claimed_until <= clock_timestamp()
        order by o.batch_id limit 1 for update skip locked)
    returning b.batch_id, b.claim, b.token into batch_id, claim, token;
    if batch_id is not null then
        return;
    end if;
    if in_order and exists (select from pgtally.batch o where o.consumer_id = consumer.consumer_id and o.finished_at is null) then
        return;
    end if;

    failed := pgtally.due_failed_events(consumer.consumer_id);
    -- In turn, so that neither waits for long.
    if cardinality(failed) = 0 or position.start_boundary::text = position.end_boundary::text then
        if pgtally.has_events(consumer.queue_id, position.end_boundary, boundary, min_events, max_wait) then
            failed := '{}';
        elsif cardinality(failed) = 0 then
            return;
        end if;
    end if;
    claim := 1;
    insert into pgtally.batch as b (consumer_id, start_boundary, end_boundary, claim, claimed_until, batches, events, dropped_events)
    values (consumer.consumer_id, position.end_boundary, case when failed = '{}' then boundary else position.end_boundary end,
        claim, clock_timestamp() + lease, position.batches + 1, 0, 0)
    returning b.batch_id, b.token into batch_id, token;
    update pgtally.failed_event f set batch_id = claim_batch.batch_id where f.failed_event_id = any (failed);
end
$$;
