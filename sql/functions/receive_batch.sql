-- receive_batch(counter_name, batch, keys, deltas): adds what export_batch() has given in another database to a counter of this one, exactly once, however often
-- and from wherever it comes. Returns whether it did so now; false when it had been added before.
--
-- To be committed (with synchronous_commit) before the batch is finished in its source. That batch must have been committed to disk there before it was exported:
-- else a crash could take it away, and give its events again in another one.
--
-- Each batch names the one that it follows, by a random token. The counter keeps the token of the last one that it has received from each consumer, and takes nothing but
-- what follows that: one statement compares, moves on and makes others wait that bring the same at this moment. So a batch that comes again has no effect, and everything in which the two no longer fit
-- together is told instead of counted wrongly, since its token is another one: a source that was restored from an older
-- backup and gives the same numbers to other batches; a consumer that was set back or on (seek, skip, rebase, registered again); a target that was
-- restored, and lacks what the source has finished. Without anything received, only a consumer's first batch is taken, and of several
-- databases with one and the same beginning (copies) only those of the first that came.
--
-- Runs with its owner's rights: EXECUTE on it is all that is needed.
--
-- Errors: TL012 when it does not follow what was received last; as add_events(); TL003 when it is from the counter's own queue; TL004 when the transaction
-- is not READ COMMITTED.
create or replace function pgtally.receive_batch(counter_name text, batch jsonb, keys text[], deltas bigint[]) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    source constant pgtally.received := pgtally.received_batch(counter, batch);
    last pgtally.received;
    follows constant uuid := batch ->> 'follows';
    problem text;
    advice text := 'See docs/forwarding.md for how to put the counts right';
begin
    perform pgtally.require_read_committed();
    if source.source_cluster = pgtally.system_identifier() and source.source_database = current_database()
        and source.source_queue = (select q.name from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = counter.counter_id)
    then
        raise exception 'Queue "%" would be forwarded to itself, without end', source.source_queue
            using errcode = 'TL003', hint = 'Forward it to a counter with a queue of its own.';
    end if;

    insert into pgtally.received as r (counter_id, source_cluster, source_database, source_queue, source_consumer, position, batch_id, began_after)
    select source.counter_id, source.source_cluster, source.source_database, source.source_queue, source.source_consumer, source.position, source.batch_id, follows
    where (batch ->> 'is_first')::boolean and not exists (select from pgtally.received o where o.counter_id = source.counter_id and o.began_after = follows)
        or exists (
            select from pgtally.received o
            where (o.counter_id, o.source_cluster, o.source_database, o.source_queue, o.source_consumer)
                = (source.counter_id, source.source_cluster, source.source_database, source.source_queue, source.source_consumer))
    on conflict (counter_id, source_cluster, source_database, source_queue, source_consumer) do update
    set position = excluded.position, batch_id = excluded.batch_id, received_at = clock_timestamp()
    where r.position = follows;
    if found then
        perform pgtally.add_events(counter_name, keys, deltas);
        return true;
    end if;

    -- In a later statement than the one that may have waited for somebody who has brought the same.
    select o.* into last from pgtally.received o
    where (o.counter_id, o.source_cluster, o.source_database, o.source_queue, o.source_consumer)
        = (source.counter_id, source.source_cluster, source.source_database, source.source_queue, source.source_consumer);
    if last.position = source.position then
        return false;
    elsif last.batch_id < (batch ->> 'follows_number')::bigint then
        problem := format('the last that was received is batch %s, and the source has finished batch %s: this database was set back (restored from an older backup), and lacks '
            'what came between', last.batch_id, batch ->> 'follows_number');
    elsif last.counter_id is not null then
        problem := format('it does not follow batch %s, which was received last: the source was set back (restored from an older backup), or its consumer was moved '
            '(rebase, seek, skip) or registered again', last.batch_id);
    else
        select o.* into last from pgtally.received o where o.counter_id = source.counter_id and follows in (o.position, o.began_after);
        if found then
            problem := format('it goes on from where database "%s" of cluster %s is or was: this one is a copy of it', last.source_database, last.source_cluster);
            advice := 'Do not forward from a copy, unless it has replaced the original';
        else
            problem := 'nothing was received from there before, and it is not the first batch: the counter was made again, this database was set back, or the '
                'source is a restored or renamed one';
        end if;
    end if;
    raise exception 'Counter "%" cannot take batch % of consumer "%", queue "%", database "%": %',
        counter_name, source.batch_id, source.source_consumer, source.source_queue, source.source_database, problem
        using errcode = 'TL012', hint = format('%s. To go on with this batch then, run in the counter''s database: select pgtally.accept_batch(%L, %L)', advice, counter_name, batch - 'token');
end
$$;
