-- add_deltas(counter, keys, deltas, events, report): adds the deltas to the counter's target; the heart of applying.
--
-- keys are distinct; events says how many events each delta is the sum of. What the carry table holds for a key is added
-- with it. Never waits for a row of the target: what another transaction has locked goes to the carry table and is
-- added with a later call. A transaction that waits for nothing cannot be part of a deadlock. (on_missing = insert may
-- wait for another transaction that is inserting the same key; for 50 ms, then the delta is carried.)
--
-- SKIP LOCKED of the server has a gap: where a row's updater commits between the look at the row and the look at the lock, and the new
-- version has been updated already, it waits for that (heap_lock_updated_tuple), while it holds rows that the updater may want next. So
-- lock_timeout ends that, well before anyone's deadlock_timeout (1 s by default): the batch fails with 55P03 and is to be tried again.
--
-- Statement by statement, each with its own snapshot (READ COMMITTED): once a row is locked, its newest version is the
-- one that the later statements see. A row that could not be locked but is found by a later look without a lock is in
-- someone else's hands, or was inserted in between: carried. One that is not found either is missing.
--
-- The target is joined by key with plain arrays, and filtered by them, so that a sharded or partitioned target is pruned and an index is used; not for
-- tens of thousands of keys, which are everywhere: to plan and filter with 100,000 constants took a fifth of the time of adding them.
--
-- Triggers of the target find the search_path that the application's would (the session's default). A row that row-level
-- security hides would look like a missing one: require_all_rows(), and row_security = off, make that an error.
--
-- Runs with the caller's rights, as do the target's triggers: it takes SELECT on the key and the count, and UPDATE on the count; INSERT on both where on_missing is insert.
--
-- The update says what it has changed only where somebody wants to know: report, or a counter with milestones (record_milestones) or a ranking beside its target (rank_counts). Whether a backfill is unfinished is read before the carry is: when
-- it has ended, all its corrections are there to be read, and what is stored afterwards includes the rows that were there before.
--
-- Returns the number of carried keys, of events dropped for want of a row, and of stored counts that were changed, for how many ms rows may have been locked by now, and with
-- report the changes: an array of [key, new stored count], both as text; NULL where there is none.
--
-- Errors: TL003 when the target was dropped, and as require_all_rows(); TL008 when a row is missing and on_missing says error; 55P03, and a complaint about a multixact (src/errors.ts), seldom, then try again; whatever the target's constraints and triggers raise.
create or replace function pgtally.add_deltas(
    counter pgtally.counter, keys anyarray, deltas bigint[], events bigint[], report boolean default false,
    out carried integer, out dropped_events bigint, out locked_ms double precision, out changed bigint, out changes json
) language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    -- Written out with its schema while search_path is short.
    target constant text := counter.target_table::text;
    carry constant text := format('pgtally.carry_%s', counter.counter_id);
    key_type constant text := (select format_type(typelem, null) from pg_type where oid = pg_typeof(keys)::oid);
    locked_keys keys%type;
    other_keys keys%type := '{}';
    missing_keys keys%type := '{}';
    inserted_keys keys%type := '{}';
    carry_exists boolean;
    ranking constant text := case when not counter.own_target then pgtally.ranking_table(counter) end;
    returning_changes constant boolean := report or counter.milestones is not null or ranking is not null;
    backfilling boolean;
    reached bigint[];
    update_statement text;
    changed_keys keys%type;
    changed_deltas bigint[];
    changed_counts bigint[];
    lock_timeout constant text := current_setting('lock_timeout');
    began constant timestamptz := clock_timestamp();
    few constant boolean := cardinality(keys) <= 20000;
begin
    carried := 0;
    dropped_events := 0;
    perform pgtally.require_table(counter.name, 'target', counter.target_table);

    perform pgtally.require_all_rows(counter.name, counter.target_table);

    -- ROW SHARE: an ALTER TABLE is waited for as before. LOCK TABLE takes UPDATE on the whole table, and this on one column.
    execute format('select from only %s where false for no key update', target);
    perform set_config('lock_timeout', '50ms', true);
    execute format(
        'select coalesce(array_agg(key), ''{}'') from (
            select u.key from unnest($1) u(key), %1$s t where t.%2$I = u.key %3$s for no key update of t skip locked
        ) locked',
        target, counter.target_key, case when few then format('and t.%I = any ($1)', counter.target_key) end)
    into locked_keys using keys;
    perform set_config('lock_timeout', lock_timeout, true);

    if cardinality(locked_keys) < cardinality(keys) then
        other_keys := array(select unnest(keys) except select unnest(locked_keys));
        execute format(
            'select coalesce(array_agg(key), ''{}'') from (
                select unnest($1) except select t.%2$I::%3$s from %1$s t where t.%2$I = any ($1)
            ) missing(key)',
            target, counter.target_key, key_type)
        into missing_keys using other_keys;
        if cardinality(missing_keys) > 0 and counter.on_missing = 'error' then
            raise exception 'Counter "%": % has no row for % of the keys, % among them',
                counter.name, target, cardinality(missing_keys), missing_keys[1]
                using errcode = 'TL008', hint = 'Insert the rows, or define the counter with another on_missing.';
        elsif cardinality(missing_keys) > 0 and counter.on_missing = 'insert' then
            -- What could not be inserted, someone else is inserting: so it is treated as locked.
            inserted_keys := pgtally.insert_missing(counter, missing_keys);
            locked_keys := locked_keys || inserted_keys;
            missing_keys := '{}';
        end if;
        other_keys := array(
            select unnest(other_keys) except select unnest(missing_keys) except select unnest(inserted_keys));

        execute format(
            'with carried as (
                insert into %s (key, delta, events)
                select key, delta, events from unnest($1, $2, $3) u(key, delta, events)
                where key = any ($4) and delta <> 0
                returning key
            )
            select count(*) from carried', carry)
        into carried using keys, deltas, events, other_keys;
    end if;

    if counter.milestones is not null then
        backfilling := pgtally.is_backfilling(counter.counter_id);
    end if;
    -- Whoever has locked the key's row owns its carry rows. Those of a missing key have no such owner, but only who has the consumer drops them.
    execute format('select exists (select from %s)', carry) into carry_exists;
    if carry_exists then
        execute format(
            'with taken as (
                delete from %s where key = any ($4) returning key, delta, events, reached
            )
            select array_agg(key), array_agg(delta), array_agg(events), array_agg(reached) from (
                select key, pgtally.sum_delta(delta) as delta, pgtally.sum_delta(events) as events, max(reached) as reached
                from (
                    select u.*, null::bigint as reached from unnest($1, $2, $3) u(key, delta, events) where key = any ($4)
                    union all select * from taken
                ) parts
                group by key
            ) summed', carry)
        into keys, deltas, events, reached using keys, deltas, events, locked_keys || missing_keys;
    end if;

    update_statement := format(
        'update %1$s t set %3$I = coalesce(t.%3$I, 0) operator(pg_catalog.+) u.delta
        from unnest($1, $2) u(key, delta)
        where t.%2$I operator(pg_catalog.=) u.key and u.delta operator(pg_catalog.<>) 0 %4$s',
        target, counter.target_key, counter.target_column,
        case when few or cardinality(locked_keys) < cardinality(keys) then format('and t.%I operator(pg_catalog.=) any ($3)', counter.target_key) end);
    if returning_changes then
        update_statement := format(
            'with changed as (%s returning u.key, u.delta, t.%I::pg_catalog.int8 as value)
            select pg_catalog.array_agg(key), pg_catalog.array_agg(delta), pg_catalog.array_agg(value) from changed',
            update_statement, counter.target_column);
    end if;
    perform set_config('search_path', pgtally.session_search_path(counter.target_table), true);
    if not returning_changes then
        execute update_statement using keys, deltas, locked_keys;
        get diagnostics changed = row_count;
    else
        execute update_statement into changed_keys, changed_deltas, changed_counts using keys, deltas, locked_keys;
    end if;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if returning_changes then
        changed := coalesce(cardinality(changed_keys), 0);
    end if;
    if report then
        changes := (select json_agg(json_build_array(u.key::text, u.count::text)) from unnest(changed_keys, changed_counts) u(key, count));
    end if;
    if counter.milestones is not null then
        perform pgtally.record_milestones(counter, changed_keys, changed_deltas, changed_counts, keys, reached, backfilling);
    end if;
    if ranking is not null then
        perform pgtally.rank_counts(ranking, changed_keys, changed_counts, missing_keys);
    end if;

    if cardinality(missing_keys) > 0 then
        select pgtally.sum_delta(u.events) into dropped_events from unnest(keys, events) u(key, events) where u.key = any (missing_keys);
    end if;
    locked_ms := extract(epoch from clock_timestamp() - began) * 1000;
    -- It works again, whoever found that out; wait_for_carried() may come without the consumer's lock, and does not wait for who has it.
    update pgtally.consumer c set last_error = null, last_error_at = null
    where c.consumer_id = (select f.consumer_id from pgtally.consumer f where f.consumer_id = counter.counter_id and f.last_error is not null for update skip locked);
end
$$;
