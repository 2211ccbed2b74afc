-- insert_event(queue_name, key, delta, data): appends an event to a queue, in the caller's own transaction.
--
-- Waits for nothing and reads no counter. It becomes part of a batch once the transaction has committed, exactly once
-- for each consumer. Runs with its owner's rights: EXECUTE on it is all that a writer needs.
--
-- Errors: TL001 when there is no such queue; TL007 when key or delta is NULL or will not do, or when the queue has a
-- source, whose triggers alone may emit to it (an event without a row would make the count wrong).
create or replace function pgtally.insert_event(queue_name text, key text, delta bigint default 1, data jsonb default null)
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    queue record;
begin
    select q.queue_id, s.source_table into queue
    from pgtally.queue q left join pgtally.source s using (queue_id)
    where q.name = queue_name;
    if queue.queue_id is null then
        perform pgtally.queue_id(queue_name);
    elsif queue.source_table is not null then
        raise exception 'Queue "%" counts the rows of %: events cannot be added by hand', queue_name, queue.source_table
            using errcode = 'TL007', hint = 'Insert, update or delete rows of the table instead.';
    elsif key is null or delta is null then
        raise exception 'An event of queue "%" needs a key and a delta, neither of them NULL', queue_name
            using errcode = 'TL007', hint = 'Leave the event out where there is nothing to count.';
    elsif octet_length(key) > 2000 then
        raise exception 'Queue "%": a key of % bytes is too long', queue_name, octet_length(key)
            using errcode = 'TL007', hint = 'A key has at most 2,000 bytes; use a hash of it.';
    end if;
    -- A key of another type fails in the cast, with the server's own error: to catch it here would cost a
    -- subtransaction for each event.
    execute format('select pgtally.insert_event_%s($1, $2, $3)', queue.queue_id) using key, delta, data;
end
$$;

create or replace function pgtally.insert_event(queue_name text, key anyelement, delta bigint default 1, data jsonb default null)
returns void language sql volatile set search_path = pg_catalog, pg_temp as $$
    select pgtally.insert_event(queue_name, key::text, delta, data)
$$;
