-- lock_measured(counter_id): locks what measure() reads until the end of the transaction, against TRUNCATE and the like and nothing else
-- (ACCESS SHARE).
--
-- Waits for a table only while it has none of the others, so that it cannot be part of a deadlock with a transaction that alters or
-- truncates several of them, in whatever order. What it has is given back with the subtransaction.
--
-- Runs with its owner's rights, as LOCK takes SELECT on whole tables: so whoever audits needs it on the columns that are compared only.
--
-- Errors: TL001 when the counter was dropped meanwhile; TL003 when source or target was dropped; 55P03 when the caller's lock_timeout has passed.
create or replace function pgtally.lock_measured(counter_id integer) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    counter constant pgtally.counter := (select k from pgtally.counter k where k.counter_id = counter_id);
    queue constant integer := (select c.queue_id from pgtally.consumer c where c.consumer_id = counter_id);
    source constant oid := (select s.source_table from pgtally.source s where s.queue_id = queue);
    events constant text := format('event_%s', queue);
    carried constant text := format('^(carry|packed|recent)_%1$s$|^bucket_%1$s_', counter_id);
    first_table text;
    next_table text;
begin
    loop
        if not exists (select from pgtally.counter k where k.counter_id = counter_id) then
            raise exception 'The counter "%" was dropped', coalesce(counter.name, counter_id::text)
                using errcode = 'TL001', hint = 'Make it with create_counter(), or see the names in counter_status().';
        end if;
        perform pgtally.require_table(counter.name, 'target', counter.target_table);
        if source is not null then
            perform pgtally.require_table(counter.name, 'source', source);
        end if;
        begin
            if first_table is not null then
                execute format('lock table only %s in access share mode', first_table);
            end if;
            for next_table in
                select c.oid::regclass::text from pg_class c
                where c.oid in (counter.target_table, source)
                    or c.relkind in ('r', 'p') and c.relnamespace = (select relnamespace from pg_class where oid = 'pgtally.queue'::regclass)
                        and (c.relname ~ format('^%s(_[0-2])?$|%s', events, carried))
                    or c.oid in (select relid from pg_partition_tree(counter.target_table))
                    or c.oid in (select relid from pg_partition_tree(source))
            loop
                execute format('lock table only %s in access share mode nowait', next_table);
            end loop;
            return;
        exception
            when lock_not_available then
                if next_table is null then
                    raise;
                end if;
                first_table := next_table;
            when undefined_table then -- a partition, meanwhile
                first_table := null;
        end;
        next_table := null;
    end loop;
end
$$;
