-- register_consumer(queue_name, consumer_name): makes a consumer that is given every event from now on.
--
-- Its first batch begins with what commits after this statement, the caller's own transaction included. Returns true
-- when it was made and false when it was already there.
--
-- Errors: TL001 when there is no such queue; TL003 without a name; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.register_consumer(queue_name text, consumer_name text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    queue constant integer := pgtally.queue_id(queue_name);
    id integer;
    boundary pg_snapshot;
begin
    if consumer_name is null or consumer_name = '' then
        raise exception 'A consumer of queue "%" needs a name', queue_name
            using errcode = 'TL003', hint = 'Give a name that is not empty.';
    elsif octet_length(consumer_name) > 200 then
        raise exception 'Queue "%": a consumer''s name of % bytes is too long', queue_name, octet_length(consumer_name)
            using errcode = 'TL003', hint = 'Use 200 bytes or less.';
    end if;
    -- Twenty at once: one inserts, the others wait here for it. The foreign key takes FOR KEY SHARE on the queue's row,
    -- which rotate() locks FOR UPDATE: no slot is emptied between the boundary taken below and its commit.
    insert into pgtally.consumer (queue_id, name, system_identifier)
    values (queue, consumer_name, pgtally.system_identifier())
    on conflict do nothing
    returning consumer_id into id;
    if id is null then
        return false;
    end if;
    boundary := pgtally.current_boundary();
    insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
    values (id, boundary, boundary, clock_timestamp(), 0, 0, 0);
    return true;
end
$$;
