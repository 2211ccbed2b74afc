-- expire_buckets(counter_name): empties the slots of buckets that need not be kept any more. Returns how many; NULL when a batch is in hand.
--
-- May be called at any time, by several at once; workers do it all the time. Until it is called buckets are kept longer, and nothing else happens. Waits for nobody: what somebody reads is
-- emptied another time. What is emptied was not kept any more, hence not read either (kept_since), so nobody sees a slot half emptied.
--
-- Runs with its owner's rights: EXECUTE on it is all that a worker needs.
--
-- Errors: TL001 when there is no such counter; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.expire_buckets(counter_name text) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set datestyle = iso as $$
declare
    counter pgtally.counter := pgtally.require_counter(counter_name);
    bucket pgtally.bucket;
    since timestamptz;
    slots integer[];
    slot integer;
    emptied integer := 0;
begin
    perform pgtally.require_read_committed();
    if not exists (select from pgtally.bucket b where b.counter_id = counter.counter_id and pgtally.kept_since(b) > b.kept_since) then
        return 0;
    end if;
    counter := pgtally.lock_counter(counter_name);
    if counter.counter_id is null then
        return null;
    end if;
    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id and b.slot_span is not null for update loop
        since := pgtally.kept_since(bucket);
        continue when since <= bucket.kept_since;
        slots := array(
            select distinct mod(mod(floor(extract(epoch from bucket.kept_since + passed * bucket.slot_span) / extract(epoch from bucket.slot_span))::bigint, 6) + 6, 6)
            from generate_series(0, least(5, extract(epoch from since - bucket.kept_since) / extract(epoch from bucket.slot_span) - 1)::integer) passed);
        begin
            foreach slot in array slots loop
                execute format('lock table pgtally.bucket_%s_%s_%s in access exclusive mode nowait', bucket.counter_id, bucket.number, slot);
                execute format('truncate pgtally.bucket_%s_%s_%s', bucket.counter_id, bucket.number, slot);
            end loop;
            -- Of times that were once far ahead: there are few.
            execute format('delete from pgtally.bucket_%s_%s_6 where start < %L', bucket.counter_id, bucket.number, since);
            update pgtally.bucket b set kept_since = since where (b.counter_id, b.number) = (bucket.counter_id, bucket.number);
            emptied := emptied + cardinality(slots);
        exception when lock_not_available then
            null;
        end;
    end loop;
    return emptied;
end
$$;
