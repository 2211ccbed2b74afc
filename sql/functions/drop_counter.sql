-- drop_counter(counter_name): removes a counter; the counts in the user's table stay as they are.
--
-- What was still pending or carried is not added any more; apply_batch() first, where that matters. pgtally's own table
-- goes with the counter, as do its milestones and their queue. The queue that came with the counter, and its source's triggers, go with its last consumer.
--
-- Errors: TL001 when there is no such counter; TL010 while the queue of its milestones has consumers or counters.
create or replace function pgtally.drop_counter(counter_name text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter pgtally.counter;
    queue pgtally.queue;
    number integer;
begin
    lock table pgtally.counter in share row exclusive mode;
    counter := pgtally.require_counter(counter_name);
    select q.* into queue from pgtally.queue q join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id;
    -- Before the consumer, as all do who lock both (correct_times).
    perform from pgtally.counter k where k.counter_id = counter.counter_id for update;
    -- Waits for the batch in hand.
    perform pgtally.lock_consumer(queue.name, counter_name);
    for number in select b.number from pgtally.bucket b where b.counter_id = counter.counter_id loop
        execute format('drop table pgtally.bucket_%s_%s cascade', counter.counter_id, number);
    end loop;
    delete from pgtally.counter k where k.counter_id = counter.counter_id;
    delete from pgtally.reconciliation r where r.counter_id = counter.counter_id;
    delete from pgtally.last_audit a where a.counter_id = counter.counter_id;
    delete from pgtally.batch b where b.consumer_id = counter.counter_id;
    delete from pgtally.consumer c where c.consumer_id = counter.counter_id;
    execute format('drop table pgtally.carry_%1$s, pgtally.packed_%1$s cascade', counter.counter_id);
    execute format('drop table if exists pgtally.recent_%1$s, pgtally.later_%1$s, pgtally.rank_%1$s', counter.counter_id);
    if counter.own_target then
        execute format('drop table if exists pgtally.count_%s', counter.counter_id);
    end if;
    if counter.milestones is not null then
        -- Now that the carry is gone, nobody is adding any more, not even who does so without the consumer's lock (wait_for_carried).
        delete from pgtally.milestone m where m.counter_id = counter.counter_id;
        perform pgtally.drop_queue(counter_name || '.milestones');
    end if;
    if queue.implicit and not exists (select from pgtally.consumer c where c.queue_id = queue.queue_id) then
        perform pgtally.drop_queue(queue.name);
    end if;
end
$$;
