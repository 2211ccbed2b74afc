begin;

-- pgtally: installs version 1 in the schema "pgtally".

-- All of it is one transaction.

do $pgtally$
begin
    perform pg_catalog.set_config('pgtally.transaction', pg_catalog.pg_current_xact_id()::pg_catalog.text, true),
        pg_catalog.set_config('pgtally.search_path', pg_catalog.current_setting('search_path'), true),
        pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
end
$pgtally$;
do $pgtally$
begin
    if pg_catalog.current_setting('pgtally.transaction', true) is distinct from pg_catalog.pg_current_xact_id()::pg_catalog.text then
        raise exception 'This must be run as one transaction' using hint = 'With psql: psql --single-transaction --set ON_ERROR_STOP=1.';
    end if;
    if current_setting('server_version_num')::integer < 140000 then
        raise exception 'The server is PostgreSQL %, and pgtally needs 14 or later', current_setting('server_version');
    end if;
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgtally install pgtally', 0::pg_catalog.int8));
    create schema pgtally;
end
$pgtally$;

-- The tables of pgtally. A migration is frozen once it is released; a later change is a new file.
--
-- The files are written for the schema `pgtally`; for another schema the installer replaces that name.
-- Tables made for one queue or counter carry its number: event_1 (with the slots event_1_0 to event_1_2), carry_1, count_1.

-- One row. The version is the number of migrations that have run.
create table pgtally.installation (
    schema_version integer not null,
    functions_hash text not null,
    installed_at timestamptz not null default now()
);

create table pgtally.queue (
    queue_id integer generated always as identity primary key,
    name text not null unique check (name <> ''),
    key_type text not null check (key_type in ('smallint', 'integer', 'bigint', 'uuid', 'text')),
    rotation_period interval not null check (rotation_period >= interval '1 second'),
    -- How long events are kept at least, consumed or not.
    retain interval not null check (retain between interval '0' and rotation_period),
    -- Made together with a counter, and dropped with its last consumer.
    implicit boolean not null,
    created_at timestamptz not null default now()
);

-- The table whose rows a queue's events stand for. Its triggers are the only ones that may emit to the queue.
create table pgtally.source (
    queue_id integer primary key references pgtally.queue,
    source_table regclass not null,
    source_key name not null,
    -- Both as the server itself writes them out (pg_get_expr), with every constant and cast resolved.
    where_condition text,
    sum_expression text,
    -- With these columns as its data, each row is an event of its own.
    data_columns name[],
    -- The table and its partitions when the triggers were last seen to: of what has come or gone since, the rows were not counted.
    tables regclass[] not null
);

-- A consumer's row is locked by whoever works on its batch and is not updated by it: a row that is updated for every
-- batch grows a chain of dead versions for as long as anyone holds back the cluster's oldest transaction.
create table pgtally.consumer (
    consumer_id integer generated always as identity primary key,
    queue_id integer not null references pgtally.queue,
    name text not null check (name <> ''),
    -- Transaction ids mean nothing in another cluster (pg_control_system), so neither do the boundaries.
    system_identifier bigint not null,
    -- Since then it is given no batch.
    paused_at timestamptz,
    last_error text,
    last_error_at timestamptz,
    created_at timestamptz not null default now(),
    unique (queue_id, name)
);

-- The newest row of a consumer is its position: the next batch begins where that one ends. Those with finished_at null are open. Append-only
-- for the same reason: the newest row is the first that a backward index scan meets, however many dead ones lie behind it.
-- rotate() deletes what is no longer needed.
create table pgtally.batch (
    batch_id bigint generated always as identity primary key,
    -- No foreign key: its check would lock the consumer's row once more for every batch.
    consumer_id integer not null,
    start_boundary pg_snapshot not null,
    end_boundary pg_snapshot not null,
    finished_at timestamptz,
    -- How often it was claimed; 0 when next_batch() opened it. The newest claim is the one that may finish it, and nobody else may claim it until then.
    claim integer not null default 0,
    claimed_until timestamptz,
    -- Totals of the consumer up to this batch; events and dropped_events are kept for counters only.
    batches bigint not null,
    events bigint not null,
    dropped_events bigint not null,
    -- Tells it from every other one, also where a database was set back and has given its number to other events (receive_batch).
    token uuid not null default gen_random_uuid(),
    unique (consumer_id, batch_id)
);
-- Counters finish their batches as they open them, so they never write here.
create index on pgtally.batch (consumer_id, batch_id) where finished_at is null;

-- Events that a consumer could not handle: given to it again at retry_at, or, where that is null, dead letters. They hold up nothing.
create table pgtally.failed_event (
    failed_event_id bigint generated always as identity primary key,
    -- No foreign key: its check would wait for whoever has locked the consumer's row and waits for the batch (skip(), seek()).
    consumer_id integer not null,
    ev_id text not null,
    ev_time timestamptz not null,
    ev_key text not null,
    ev_delta bigint not null,
    ev_data jsonb,
    -- How often it was handled in vain.
    attempts integer not null,
    reason text not null,
    failed_at timestamptz not null default clock_timestamp(),
    retry_at timestamptz,
    -- It failed together with others: to find out which of them it is, it is given again without them.
    alone boolean not null default false,
    -- The open batch that it is given with.
    batch_id bigint
);
create index on pgtally.failed_event (consumer_id, retry_at);
create index on pgtally.failed_event (batch_id) where batch_id is not null;

create table pgtally.counter (
    counter_id integer primary key references pgtally.consumer,
    name text not null unique,
    target_table regclass not null,
    target_key name not null,
    target_column name not null,
    on_missing text not null check (on_missing in ('drop', 'insert', 'error')),
    -- Whether target_table is pgtally's own count_<counter_id>.
    own_target boolean not null,
    -- Ascending; what record_milestones() looks for.
    milestones bigint[],
    -- Two counters would both add to it.
    unique (target_table, target_column)
);

-- How far a counter has come with what a consumer in another database forwards to it; see receive_batch().
create table pgtally.received (
    counter_id integer not null references pgtally.counter on delete cascade,
    -- pg_control_system
    source_cluster bigint not null,
    source_database text not null,
    source_queue text not null,
    source_consumer text not null,
    -- The batch that was received last, its token and number; 0 where it is none, but where an operator has set it to (accept_batch).
    position uuid not null,
    batch_id bigint not null,
    -- The position before the first one that was received. A copy of the source has it, too, and would begin there once more.
    began_after uuid not null default gen_random_uuid(),
    received_at timestamptz not null default clock_timestamp(),
    primary key (counter_id, source_cluster, source_database, source_queue, source_consumer),
    unique (counter_id, began_after)
);

-- A comparison of all keys of a counter with its source, with corrections, as far as it has come. A new counter has one to do.
create table pgtally.reconciliation (
    reconciliation_id bigint generated always as identity unique,
    counter_id integer primary key,
    reason text not null check (reason in ('backfill', 'partitions', 'requested')),
    -- All keys up to this one are right; NULL before the first.
    after_key text,
    -- Up to there, for last_audit.
    checked_keys bigint not null default 0,
    drifting_keys bigint not null default 0,
    began_at timestamptz not null default clock_timestamp()
);

-- What the last comparison of a counter with its source has found: of all keys, and of a sample.
create table pgtally.last_audit (
    -- No foreign key: its check would wait for whoever is correcting (lock_corrections), and an audit waits for nobody.
    counter_id integer not null,
    complete boolean not null,
    -- When it ended.
    audited_at timestamptz not null default clock_timestamp(),
    checked_keys bigint not null,
    drifting_keys bigint not null,
    -- It was a reconciliation: these keys drift no more.
    corrected boolean not null,
    primary key (counter_id, complete)
);

-- Which thresholds a counter's keys have reached, each once for ever. A key's rows are written by whoever has locked its row of the target, so that
-- nobody waits for the unique index (record_milestones).
create table pgtally.milestone (
    counter_id integer not null,
    -- The queue's key as text, in the server's spelling.
    key text not null,
    threshold bigint not null,
    value bigint not null,
    reached_at timestamptz not null default clock_timestamp(),
    primary key (counter_id, key, threshold)
);

-- Who was given which rights (grant_access). A name that has no USAGE on the schema any more is a role that was dropped, or whose rights were taken back by hand; it counts for nothing.
create table pgtally.access (
    role_name name not null,
    kind text not null check (kind in ('writer', 'reader', 'worker')),
    primary key (role_name, kind)
);

-- sum(bigint) computes in numeric; this one adds in bigint, twice as fast, and raises an error when it overflows.
create aggregate pgtally.sum_delta(bigint) (
    sfunc = int8pl, stype = bigint, initcond = '0', combinefunc = int8pl, parallel = safe
);

set local check_function_bodies = off;

-- accept_batch(counter_name, batch): makes that batch the one which receive_batch() takes next from there, whatever was received before; for an operator, after
-- TL012, whose hint has the whole call.
--
-- Where it goes on from another database's position, that database has none any more: from now on its batches are refused.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.accept_batch(counter_name text, batch jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    source constant pgtally.received := pgtally.received_batch(pgtally.require_counter(counter_name), batch);
    follows constant uuid := batch ->> 'follows';
begin
    delete from pgtally.received r where r.counter_id = source.counter_id and r.position = follows;
    insert into pgtally.received as r (counter_id, source_cluster, source_database, source_queue, source_consumer, position, batch_id)
    values (source.counter_id, source.source_cluster, source.source_database, source.source_queue, source.source_consumer, follows, coalesce((batch ->> 'follows_number')::bigint, 0))
    on conflict (counter_id, source_cluster, source_database, source_queue, source_consumer) do update
    set position = excluded.position, batch_id = excluded.batch_id, received_at = clock_timestamp();
end
$$;

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
-- The update says what it has changed only where somebody wants to know: report, or a counter with milestones (record_milestones). Whether a backfill is unfinished is read before the carry is: when
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
    returning_changes constant boolean := report or counter.milestones is not null;
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
    -- Whoever has locked the key's row owns its carry rows. Those of a missing key have no such owner, but then this
    -- waits at most for another transaction of pgtally that is dropping the same.
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

    if cardinality(missing_keys) > 0 then
        select pgtally.sum_delta(u.events) into dropped_events from unnest(keys, events) u(key, events) where u.key = any (missing_keys);
    end if;
    locked_ms := extract(epoch from clock_timestamp() - began) * 1000;
    -- It works again, whoever found that out.
    update pgtally.consumer c set last_error = null, last_error_at = null
    where c.consumer_id = counter.counter_id and c.last_error is not null;
end
$$;

-- add_event(counter_name, key, delta): insert_event() on the counter's queue; returns the transaction's id, for is_stored().
--
-- Errors: TL001 when there is no such counter; as insert_event().
create or replace function pgtally.add_event(counter_name text, key text, delta bigint default 1) returns xid8
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtally.insert_event(q.name, key, delta)
    from pgtally.counter k join pgtally.consumer c on c.consumer_id = k.counter_id join pgtally.queue q using (queue_id)
    where k.name = counter_name;
    if not found then
        perform pgtally.require_counter(counter_name);
    end if;
    return pg_current_xact_id();
end
$$;

-- add_events(counter_name, keys, deltas): add_event() for many keys in one INSERT; returns the transaction's id.
--
-- All or none: one key that will not do is an error for all. With no keys it does nothing but check the counter.
--
-- Errors: as add_event(); TL007 also when there are not as many deltas as keys.
create or replace function pgtally.add_events(counter_name text, keys text[], deltas bigint[]) returns xid8
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    queue pgtally.queue;
    refused record;
begin
    select q.* into strict queue from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = counter.counter_id;
    if cardinality(keys) is distinct from cardinality(deltas) then
        raise exception 'Counter "%": there are % keys and % deltas', counter_name, cardinality(keys), cardinality(deltas)
            using errcode = 'TL007', hint = 'Give one delta for each key.';
    end if;
    select u.key, u.delta into refused
    from unnest(keys, deltas) u(key, delta) where u.key is null or u.delta is null or octet_length(u.key) > 2000 limit 1;
    if found or exists (select from pgtally.source s where s.queue_id = queue.queue_id) then
        -- Which says what is wrong.
        perform pgtally.insert_event(queue.name, refused.key, refused.delta);
    end if;
    execute format('insert into pgtally.event_%s (ev_key, ev_delta) select u.key::%s, u.delta from unnest($1, $2) u(key, delta)', queue.queue_id, queue.key_type)
    using keys, deltas;
    return pg_current_xact_id();
end
$$;

-- apply_batch(counter_name, max_events, max_keys, report, notify, max_hot_keys): adds the counter's next batch to its target and finishes it.
--
-- All in the caller's transaction, so each event counts exactly once, however often this is tried, by however many
-- workers. Never waits: for another worker (busy is then true and nothing was done), nor for a row of the target (its
-- delta is carried, see add_deltas()).
--
-- The rows that it adds to stay locked until the commit, so it adds to max_keys of them at most. What the batch has for other keys is carried
-- in packed rows, which apply_packed() adds in as many transactions as it takes. (To cut the batch by its events until it has so few
-- keys would leave few events to sum: a million over 100,000 keys would mean 50 batches of 20,000 updates, not one of 100,000.) In
-- pgtally's own table nobody else locks rows, so there all keys are added at once.
--
-- events: how many were applied, of how many keys; NULL when there was nothing to do. carried: for how many of the keys
-- the delta was not added yet. packed: how many of those were put off for apply_packed(). cut: there was more than max_events, so call again (max_events NULL: never cut). locked_ms: how long rows
-- had been locked when this returned.
--
-- report: say what was changed: changes is an array of [key, new stored count], both as text, and NULL where there is nothing to say. version: its number, greater than
-- that of whatever was told of this counter before (counter_version). notify: send the version to whoever listens (notify_applied), if anything was changed.
--
-- hot_keys: the max_hot_keys keys of which the batch had the most events, those first: an array of [key, events, delta], key and delta as text; NULL where none are wanted.
--
-- Errors: TL001 when there is no such counter; TL004, TL005, TL006 as next_boundary(); TL008 as add_deltas(); whatever the
-- target's constraints raise. After an error nothing has changed and the batch is still to come. A cut boundary may take
-- a delete before its insert: if a constraint on the target objects to that, max_events NULL is the way through.
create or replace function pgtally.apply_batch(
    counter_name text, max_events integer default 1000000, max_keys integer default 10000, report boolean default false, notify boolean default false,
    max_hot_keys integer default 0,
    out busy boolean, out events bigint, out keys integer, out carried integer, out packed integer, out cut boolean, out locked_ms double precision, out version bigint, out changes json,
    out hot_keys json
) language plpgsql volatile set search_path = pg_catalog, pg_temp set work_mem = '64MB' as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    keys_at_once constant integer := case when counter.own_target then 1000000000 else max_keys end;
    consumer pgtally.consumer;
    position pgtally.batch;
    boundary pg_snapshot;
    dropped bigint;
    changed bigint;
begin
    busy := counter.counter_id is null;
    if busy then
        return;
    end if;
    -- From here on in later statements than the lock.
    select * into consumer from pgtally.consumer c where c.consumer_id = counter.counter_id;
    position := pgtally.consumer_position(counter.counter_id);
    select n.boundary, n.cut into boundary, apply_batch.cut
    from pgtally.next_boundary(consumer, position.end_boundary, max_events) n;

    -- What is packed is counted first, hence written before the first row is locked.
    execute format(
        'with sums as materialized (
            select array_agg(key) as keys, array_agg(delta) as deltas, array_agg(events) as key_events, sum(events)::bigint as events
            from (
                select ev_key as key, pgtally.sum_delta(ev_delta) as delta, count(*) as events from (%s) e group by ev_key
            ) summed
        ), packed as (
            insert into pgtally.packed_%s (keys, deltas, events)
            select array_agg(key), array_agg(delta), array_agg(events)
            from (
                select u.*, (row_number() over (order by u.key) - 1) / 100 as pack
                from sums, unnest(keys[$2 + 1:], deltas[$2 + 1:], key_events[$2 + 1:]) u(key, delta, events)
            ) packs
            group by pack
            returning cardinality(keys) as keys
        )
        select s.events, cardinality(s.keys), s.packed_keys + a.carried, s.packed_keys, a.dropped_events, a.locked_ms, a.changed, a.changes, %s
        from (select *, (select coalesce(sum(p.keys), 0) from packed p) as packed_keys from sums where keys is not null offset 0) s,
            pgtally.add_deltas($1, s.keys[:$2], s.deltas[:$2], s.key_events[:$2], $3) a',
        pgtally.events_query(consumer.queue_id, position.end_boundary, boundary), counter.counter_id,
        case when max_hot_keys > 0
            then '(select json_agg(json_build_array(h.key::text, h.events, h.delta::text)) from (
                select * from unnest(s.keys, s.key_events, s.deltas) u(key, events, delta) order by u.events desc limit $4) h)'
            else 'null::json' end)
    into events, keys, carried, packed, dropped, locked_ms, changed, changes, hot_keys using counter, keys_at_once, report, max_hot_keys;

    if events is not null then
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
        values (counter.counter_id, position.end_boundary, boundary, clock_timestamp(),
            position.batches + 1, position.events + apply_batch.events, position.dropped_events + dropped)
        returning batch_id into version;
        if notify and changed > 0 then
            perform pgtally.notify_applied(counter, version);
        end if;
    end if;
end
$$;

-- apply_carried(counter_name, after_key, max_keys, report, notify): adds what is carried for rows that were locked, as far as they can be locked by now.
--
-- Goes through the keys in order, max_keys at a time, beginning after after_key (NULL: with the first), so that rows
-- which stay locked do not hide the others. keys: how many it looked at. last_key: the last of them, for the next call; NULL when it
-- reached the end or when another worker has the counter. locked_ms: how long rows had been locked when this returned. report, notify, version, changes: as
-- apply_batch().
--
-- Errors: as add_deltas().
create or replace function pgtally.apply_carried(
    counter_name text, after_key text default null, max_keys integer default 10000, report boolean default false, notify boolean default false,
    out keys integer, out last_key text, out locked_ms double precision, out version bigint, out changes json
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    row_count bigint;
    dropped bigint;
    changed bigint;
begin
    if counter.counter_id is null then
        return;
    end if;
    perform pgtally.require_read_committed();
    -- The limit is on rows, not keys, so that the index gives them in order and no more than these are read.
    execute format(
        'select s.rows, cardinality(s.keys), s.keys[cardinality(s.keys)]::text, a.dropped_events, a.locked_ms, a.changed, a.changes
        from (
            select count(*) as rows, array_agg(distinct key order by key) as keys from (
                select key from pgtally.carry_%1$s where $2 is null or key > $2::%2$s order by key limit $3
            ) carried
        ) s, pgtally.add_deltas($1, s.keys, array_fill(0::bigint, array[cardinality(s.keys)]), array_fill(0::bigint, array[cardinality(s.keys)]), $4) a
        where s.keys is not null',
        counter.counter_id, pgtally.key_type(counter))
    into row_count, keys, last_key, dropped, locked_ms, changed, changes using counter, after_key, max_keys, report;
    version := pgtally.finish_applying(counter, dropped, changed, report, notify);
    if row_count < max_keys then
        last_key := null;
    end if;
end
$$;

-- apply_packed(counter_name, max_keys, report, notify): adds what apply_batch() has put off, a hundred keys or more of it.
--
-- keys: how many; NULL when there are none or another worker has the counter. locked_ms: how long rows had been locked when this
-- returned. What is locked by someone else is carried by itself from here on. report, notify, version,
-- changes: as apply_batch().
--
-- Errors: as add_deltas().
create or replace function pgtally.apply_packed(
    counter_name text, max_keys integer default 10000, report boolean default false, notify boolean default false,
    out keys integer, out locked_ms double precision, out version bigint, out changes json
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_counter(counter_name);
    dropped bigint;
    changed bigint;
begin
    if counter.counter_id is null then
        return;
    end if;
    perform pgtally.require_read_committed();
    -- Rows of several batches can have the same key.
    execute format(
        'with taken as (
            delete from pgtally.packed_%1$s where ctid = any (array(select ctid from pgtally.packed_%1$s limit greatest($2 / 100, 1)))
            returning keys, deltas, events
        )
        select cardinality(s.keys), a.dropped_events, a.locked_ms, a.changed, a.changes
        from (
            select array_agg(key) as keys, array_agg(delta) as deltas, array_agg(events) as events from (
                select u.key, pgtally.sum_delta(u.delta) as delta, pgtally.sum_delta(u.events) as events
                from taken t, unnest(t.keys, t.deltas, t.events) u(key, delta, events)
                group by u.key
            ) summed
        ) s, pgtally.add_deltas($1, s.keys, s.deltas, s.events, $3) a
        where s.keys is not null',
        counter.counter_id)
    into keys, dropped, locked_ms, changed, changes using counter, max_keys, report;
    version := pgtally.finish_applying(counter, dropped, changed, report, notify);
end
$$;

-- audit(counter_name, against): every drifting key of a counter with its counts; no row when all is well.
--
-- Range by range, each in a snapshot of its own, but in one transaction, which holds back vacuum for as long as it takes. For a large
-- table call audit_range() in transactions of its own, as the command `pgtally audit` does.
--
-- Errors: as audit_range().
create or replace function pgtally.audit(counter_name text, against name default null)
returns table (key text, source bigint, stored bigint, carried bigint, pending bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    part record;
    after_key text;
begin
    perform pgtally.require_against(counter, against);
    loop
        -- Not by audit_range(), which lists the first thousand of a range only.
        select * into part from pgtally.measure(counter, null, after_key, 10000, against, false, null);
        return query
        select d.* from jsonb_to_recordset(part.drifting) d(key text, source bigint, stored bigint, carried bigint, pending bigint);
        exit when part.last_key is null;
        after_key := part.last_key;
    end loop;
end
$$;

-- audit_keys(counter_name, keys, against): as audit_range() for these keys.
--
-- Errors: as audit_range(); 22P02 when a key is not of the queue's type.
create or replace function pgtally.audit_keys(
    counter_name text, keys text[], against name default null,
    out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.require_against(counter, against);
    select m.checked_keys, m.drifting_keys, m.drifting into checked_keys, drifting_keys, drifting from pgtally.measure(counter, coalesce(keys, '{}'), null, null, against, false) m;
end
$$;

-- audit_range(counter_name, after_key, max_keys, against): compares the source with stored + carried + pending for about max_keys keys.
--
-- Goes through the keys in order, beginning after after_key (NULL: with the first). last_key is where the next call begins, and NULL
-- when this one reached the end. against: hold the counts against that column of the target instead of the source,
-- such as one that the application keeps itself. checked_keys, drifting_keys, drifting: see measure().
--
-- Writers and workers go on meanwhile; neither they nor rotate() can make it see a drift that is none. Each call reads in one snapshot
-- and keeps locks (ACCESS SHARE) to the end of the transaction, so use one transaction for each.
--
-- Errors: TL001 when there is no such counter; TL003, TL009 as require_against(); TL003 when max_keys is below 1; TL004, TL005 as measure().
create or replace function pgtally.audit_range(
    counter_name text, after_key text default null, max_keys integer default 10000, against name default null,
    out last_key text, out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.require_against(counter, against);
    select m.* into last_key, checked_keys, drifting_keys, drifting
    from pgtally.measure(counter, null, after_key, max_keys, against, false) m;
end
$$;

-- audit_status(): what the last audits and reconciliations have found: for each counter, one row for the last of all keys (complete) and one for the last of a sample.
--
-- audited_at: when it ended. corrected: it was a reconciliation, so the keys that drifted do so no more. A backfill is none; nor is an audit of certain keys, or against
-- a column of the target.
create or replace function pgtally.audit_status()
returns table (counter text, complete boolean, audited_at timestamptz, checked_keys bigint, drifting_keys bigint, corrected boolean)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select k.name, a.complete, a.audited_at, a.checked_keys, a.drifting_keys, a.corrected
    from pgtally.last_audit a join pgtally.counter k using (counter_id)
    order by k.name, a.complete desc
$$;

-- batch_query(batch_id, columns): the SQL text of a query for the events of an open batch.
--
-- Errors: TL001 when there is no open batch of that number; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.batch_query(batch_id bigint, columns text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    batch record;
begin
    perform pgtally.require_read_committed();
    select c.queue_id, b.start_boundary, b.end_boundary into batch
    from pgtally.batch b join pgtally.consumer c using (consumer_id)
    where b.batch_id = batch_query.batch_id and b.finished_at is null;
    if not found then
        raise exception 'There is no open batch %', batch_query.batch_id
            using errcode = 'TL001', hint = 'Take the number from next_batch() or claim_batch(); a finished batch is not given again.';
    end if;
    return pgtally.events_query(batch.queue_id, batch.start_boundary, batch.end_boundary, columns);
end
$$;

-- begin_reconciliation(counter_name, restart): the number of the counter's unfinished reconciliation, or of a new one.
--
-- restart: begin anew where one is unfinished. Go on with reconcile_range() in transactions of their own.
--
-- Errors: TL001 when there is no such counter; TL004 when the transaction is not READ COMMITTED; TL009 when it has no source.
create or replace function pgtally.begin_reconciliation(counter_name text, restart boolean default false) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
    id bigint;
begin
    perform pgtally.require_source_rows(counter, true);
    if restart then
        -- Under a new number, so that whoever is at the old one ends.
        update pgtally.reconciliation r set reconciliation_id = default, after_key = null, checked_keys = 0, drifting_keys = 0, began_at = clock_timestamp()
        where r.counter_id = counter.counter_id;
    end if;
    insert into pgtally.reconciliation (counter_id, reason) values (counter.counter_id, 'requested')
    on conflict (counter_id) do nothing;
    select r.reconciliation_id into strict id from pgtally.reconciliation r where r.counter_id = counter.counter_id;
    return id;
end
$$;

-- carried_locks(min_age): for each counter that has carried a delta for so long: the key that has waited longest, and who has its row locked.
--
-- pid: the session whose transaction holds the row; gid: the prepared transaction that does; both NULL where the row is free at this moment, or where the caller may not read it.
-- Waits for nobody.
create or replace function pgtally.carried_locks(min_age interval default '1 minute')
returns table (counter text, key text, since timestamptz, target regclass, pid integer, gid text)
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '10ms' as $$
#variable_conflict use_column
declare
    found_counter record;
    locker xid;
    lockers xid[];
begin
    for found_counter in select k.* from pgtally.counter k order by k.name loop
        execute format('select key::text, since from pgtally.carried_%s where since < clock_timestamp() - $1 order by since limit 1', found_counter.counter_id)
        into key, since using min_age;
        continue when key is null;
        counter := found_counter.name;
        target := found_counter.target_table;
        pid := null;
        gid := null;
        locker := null;
        begin
            -- Who has locked a row, or has updated it and not ended, stands in its xmax; or there stands a multixact, a list of several.
            execute format('select t.xmax from %s t where t.%I = $1::%s', found_counter.target_table, found_counter.target_key,
                pgtally.key_type((select k from pgtally.counter k where k.counter_id = found_counter.counter_id)))
            into locker using key;
        exception when insufficient_privilege or lock_not_available or undefined_table or undefined_column or syntax_error then
            null;
        end;
        lockers := array[locker];
        if locker is not null and not exists (select from pg_locks l where l.locktype = 'transactionid' and l.transactionid = locker) then
            begin
                lockers := array(select m.xid from pg_get_multixact_members(locker) m);
            exception when others then
                -- No multixact has that number.
                null;
            end;
        end if;
        select l.pid, p.gid into pid, gid
        from pg_locks l left join pg_prepared_xacts p on p.transaction = l.transactionid
        where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.transactionid = any (lockers)
        limit 1;
        return next;
    end loop;
end
$$;

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

-- consumer_backlog(): how far behind each consumer is, counters included, at a price that does not grow with the backlog.
--
-- queue, consumer: their names; counter: whether it is one. pending_since: about when the oldest event that it has not finished was written, by the first thousand of
-- them in the order of their transactions; NULL when there is none. carried_since: when the oldest delta that a counter has carried was taken from the queue.
-- last_batch_at: when it last finished a batch; NULL when it has finished none. open_batches: given and not finished, and claimed_until: until when the
-- last of these is somebody's. foreign_cluster: its position is another database cluster's, so all events there are pending.
--
-- counter_status() and consumer_status() count what is pending, and take longer the more that is.
create or replace function pgtally.consumer_backlog()
returns table (
    queue text, consumer text, counter boolean, pending_since timestamptz, carried_since timestamptz, last_batch_at timestamptz,
    open_batches bigint, claimed_until timestamptz, paused_at timestamptz, last_error text, last_error_at timestamptz, foreign_cluster boolean
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
    own_cluster constant bigint := pgtally.system_identifier();
    found_consumer record;
begin
    for found_consumer in
        select c.*, q.name as queue_name, k.counter_id is not null as is_counter, pgtally.unfinished_since(c.consumer_id) as boundary
        from pgtally.consumer c
        join pgtally.queue q using (queue_id)
        left join pgtally.counter k on k.counter_id = c.consumer_id
        order by q.name, c.name
    loop
        queue := found_consumer.queue_name;
        consumer := found_consumer.name;
        counter := found_consumer.is_counter;
        paused_at := found_consumer.paused_at;
        last_error := found_consumer.last_error;
        last_error_at := found_consumer.last_error_at;
        foreign_cluster := found_consumer.system_identifier <> own_cluster;
        -- Ordered, so that the index gives the first ones, and not those of whichever slot comes first.
        execute format('select min(e.ev_time) from (select e.ev_time from (%s) e order by e.ev_txid limit 1000) e',
            case when foreign_cluster then format('select ev_txid, ev_time from pgtally.event_%s', found_consumer.queue_id)
                else pgtally.events_query(found_consumer.queue_id, found_consumer.boundary, null, 'ev_txid, ev_time') end)
        into pending_since;
        carried_since := null;
        if counter then
            execute format('select min(c.since) from (select since from pgtally.carried_%s limit 1000) c', found_consumer.consumer_id) into carried_since;
        end if;
        -- Backwards through the index: those of long ago may be many where a transaction keeps dead ones.
        select b.finished_at into last_batch_at from pgtally.batch b
        where b.consumer_id = found_consumer.consumer_id and b.finished_at is not null and b.batches > 0 order by b.batch_id desc limit 1;
        select count(*), max(b.claimed_until) into open_batches, claimed_until
        from pgtally.batch b where b.consumer_id = found_consumer.consumer_id and b.finished_at is null;
        return next;
    end loop;
end
$$;

-- consumer_position(consumer_id): the consumer's newest batch, open or finished.
create or replace function pgtally.consumer_position(consumer_id integer) returns pgtally.batch
language sql stable set search_path = pg_catalog, pg_temp as $$
    select b from pgtally.batch b where b.consumer_id = $1 order by b.batch_id desc limit 1
$$;

-- consumer_status(): one row for each consumer that is not a counter, and where it stands.
--
-- pending_events, lag: what it has not finished, and the age of the oldest of that. open_batches: given and not finished. retrying_events, dead_letters: see
-- fail_event(). Counts what is pending, so it takes as long as reading it would. Where the position is another cluster's, every event there is
-- counts as pending.
create or replace function pgtally.consumer_status()
returns table (
    queue text, name text, pending_events bigint, lag interval, open_batches bigint, last_batch_at timestamptz, retrying_events bigint, dead_letters bigint,
    paused_at timestamptz, last_error text, last_error_at timestamptz
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    consumer record;
begin
    for consumer in
        select c.*, q.name as queue_name, pgtally.unfinished_since(c.consumer_id) as boundary
        from pgtally.consumer c join pgtally.queue q using (queue_id)
        where not exists (select from pgtally.counter k where k.counter_id = c.consumer_id)
        order by q.name, c.name
    loop
        queue := consumer.queue_name;
        name := consumer.name;
        paused_at := consumer.paused_at;
        last_error := consumer.last_error;
        last_error_at := consumer.last_error_at;
        execute format('select count(*), coalesce(clock_timestamp() - min(ev_time), interval ''0'') from (%s) e',
            case when consumer.system_identifier = pgtally.system_identifier() then pgtally.events_query(consumer.queue_id, consumer.boundary, null, 'ev_time')
                else format('select ev_time from pgtally.event_%s', consumer.queue_id) end)
        into pending_events, lag;
        select count(*) filter (where b.finished_at is null), max(b.finished_at) filter (where b.batches > 0) into open_batches, last_batch_at
        from pgtally.batch b where b.consumer_id = consumer.consumer_id;
        select count(*) filter (where f.retry_at is not null), count(*) filter (where f.retry_at is null) into retrying_events, dead_letters
        from pgtally.failed_event f where f.consumer_id = consumer.consumer_id;
        return next;
    end loop;
end
$$;

-- counter_definition(counter_name): the definition as create_counter() took it, or NULL; what two definitions are
-- compared by. A counter that follows another's queue has no source of its own.
create or replace function pgtally.counter_definition(counter_name text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
    select jsonb_build_object(
        'queue', q.name, 'key_type', q.key_type, 'rotation_period', case when q.name = k.name then q.rotation_period end, 'retain', case when q.name = k.name then q.retain end,
        'source', s.source_table::text, 'source_key', s.source_key, 'where', s.where_condition, 'sum', s.sum_expression, 'data', to_jsonb(s.data_columns),
        'target', case when not k.own_target then k.target_table::text end,
        'target_key', case when not k.own_target then k.target_key end,
        'target_column', case when not k.own_target then k.target_column end,
        'on_missing', k.on_missing, 'milestones', to_jsonb(k.milestones))
    from pgtally.counter k
    join pgtally.consumer c on c.consumer_id = k.counter_id
    join pgtally.queue q using (queue_id)
    left join pgtally.source s on s.queue_id = q.queue_id and q.name = k.name
    where k.name = counter_name
$$;

-- counter_findings(counter_name): what keeps the counter from being exact, or from going on: one row for each, with a code for programs, and what to do about it.
--
-- Looks at definitions and triggers only; what has gone wrong with rows is found by an audit. Waits for nobody: of a table that
-- is locked, or that the caller may not read, it says only what the catalog knows.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.counter_findings(counter_name text) returns table (code text, problem text, advice text)
language plpgsql stable set search_path = pg_catalog, pg_temp set lock_timeout = '10ms' as $$
declare
    whole_numbers constant text[] := array['smallint', 'integer', 'bigint'];
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
    queue constant pgtally.queue := (select q from pgtally.queue q where q.queue_id = consumer.queue_id);
    own_cluster constant bigint := pgtally.system_identifier();
    source constant pgtally.source := (select s from pgtally.source s where s.queue_id = consumer.queue_id);
    unfinished constant pgtally.reconciliation := (select r from pgtally.reconciliation r where r.counter_id = counter.counter_id);
    reconcile constant text := format('pgtally reconcile %s', quote_ident(counter_name));
    change text;
    key_type text;
    tables text;
begin
    -- Its own or that of another consumer, whose events there are then, too.
    if exists (select from pgtally.consumer c where c.queue_id = queue.queue_id and c.system_identifier <> own_cluster) then
        return query values ('OTHER_CLUSTER', 'Its position is another database cluster''s: the database was restored or upgraded. Events are kept.', 'Run: pgtally rebase');
    end if;
    if unfinished.after_key is not null then
        return query values ('RECONCILE_UNFINISHED', format('A %s is under way or was interrupted, and is done up to the key %s.',
            case unfinished.reason when 'backfill' then 'backfill' else 'reconciliation' end, unfinished.after_key), format('To go on with it, run: %s', reconcile));
    elsif unfinished.reason = 'backfill' then
        return query values ('BACKFILL_MISSING', 'The rows that were there before the counter are not counted yet.', format('Run: %s', reconcile));
    elsif unfinished.reason = 'partitions' then
        return query values ('PARTITIONS_NOT_COUNTED', format('Partitions of %s came or went with rows in them, which were not counted.', source.source_table), format('Run: %s', reconcile));
    end if;

    if source.source_table is not null and not exists (select from pg_class where oid = source.source_table) then
        return query values ('SOURCE_DROPPED', 'Detached: its source table was dropped.', 'Drop the counter; if there is a new table, create it again for that.');
    elsif source.source_table is not null then
        begin
            key_type := pgtally.require_key_column(counter_name, source.source_table, source.source_key);
            execute format('select (%s)::int8 from %s where %s limit 0',
                coalesce(source.sum_expression, '1'), source.source_table, coalesce(source.where_condition, 'true'));
        exception
            when lock_not_available or insufficient_privilege then null;
            -- Whatever it is: a column, type or function that is gone, renamed or another.
            when others then change := sqlerrm;
        end;
        if change is not null then
            return query values ('SOURCE_CHANGED', format('Its source %s has changed, so that writes to it fail: %s.', source.source_table, change),
                'Drop the counter and create it again.');
        elsif key_type <> queue.key_type and array_position(whole_numbers, key_type) < array_position(whole_numbers, queue.key_type) is not true then
            return query values ('SOURCE_CHANGED', format('The keys of its source %s have become %s, and its queue holds %s: writes with other keys fail.',
                source.source_table, key_type, queue.key_type), 'Drop the counter and create it again.');
        end if;
        select string_agg(c.oid::regclass::text, ', ' order by c.oid) into tables
        from unnest(source.tables) t(oid) join pg_class c using (oid)
        where (
            select count(*) from pg_trigger g join pg_proc p on p.oid = g.tgfoid
            where g.tgrelid = c.oid and g.tgenabled in ('O', 'A') and p.proname like format('source\_%s\_%%', source.queue_id)
                and p.pronamespace = (select relnamespace from pg_class where oid = 'pgtally.queue'::regclass)
        ) < case c.relkind when 'r' then 4 else 3 end;
        if tables is not null then
            return query values ('TRIGGERS_SILENT', format('Triggers are missing or disabled on %s: what is written there is not counted.', tables),
                format('Enable them, or drop the counter and create it again; then run: %s', reconcile));
        end if;
        select string_agg(distinct g.tgrelid::regclass::text, ', ') into tables
        from pg_trigger g join pg_proc p on p.oid = g.tgfoid
        where p.proname like format('source\_%s\_%%', source.queue_id) and p.pronamespace = (select relnamespace from pg_class where oid = 'pgtally.queue'::regclass)
            and g.tgrelid <> all (source.tables);
        if tables is not null then
            return query values ('TRIGGERS_LEFT', format('Not of its source any more, but with its triggers: %s. What is written there is counted.', tables),
                format('Drop the triggers; then run: %s', reconcile));
        end if;
    end if;

    if not exists (select from pg_class where oid = counter.target_table) then
        return query values ('TARGET_DROPPED', 'Detached: its target table was dropped.', 'Drop the counter; if there is a new table, create it again for that.');
    else
        begin
            key_type := pgtally.require_key_column(counter_name, counter.target_table, counter.target_key);
            perform pgtally.require_target(counter_name, counter.target_table, counter.target_key, counter.target_column);
            if key_type <> queue.key_type and not (key_type = any (whole_numbers) and queue.key_type = any (whole_numbers)) then
                raise exception 'Counter "%": the keys of % are %, and those of its queue %', counter_name, counter.target_table, key_type, queue.key_type
                    using errcode = 'TL003';
            end if;
        exception when sqlstate 'TL003' then
            return query values (case when pgtally.is_unique_key(counter.target_table, counter.target_key) or 2 <> (
                    select count(*) from pg_attribute a
                    where a.attrelid = counter.target_table and a.attname in (counter.target_key, counter.target_column) and not a.attisdropped)
                then 'TARGET_CHANGED' else 'TARGET_KEY_NOT_UNIQUE' end,
                format('Its target has changed, and what cannot be added waits: %s.', sqlerrm), 'Mend that, or drop the counter and create it again.');
        end;
    end if;
end
$$;

-- counter_problems(counter_name): what keeps the counter from being exact, or from going on; one text for each, with the remedy. See counter_findings().
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.counter_problems(counter_name text) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select array(select f.problem || ' ' || f.advice from pgtally.counter_findings(counter_name) f)
$$;

-- counter_status(): one row for each counter: what it counts and where it stands.
--
-- pending_events, lag: the events that have committed and are not applied yet, and the age of the oldest (of those carried,
-- too). carried_keys: keys of which something waits for a locked row. events, batches: applied so far. dropped_events:
-- events whose key had no row in the target. problems: see counter_problems(). Where the position is another cluster's,
-- every event there is counts as pending. Counts what is pending, so it takes as long as a batch of that size would.
create or replace function pgtally.counter_status()
returns table (
    name text, queue text, source text, target text, pending_events bigint, lag interval, carried_keys bigint,
    events bigint, batches bigint, dropped_events bigint, last_batch_at timestamptz, last_error text, last_error_at timestamptz, problems text[]
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    counter record;
begin
    for counter in
        select k.*, c.queue_id, c.system_identifier = pgtally.system_identifier() as own_cluster, c.last_error, c.last_error_at, q.name as queue_name, s.source_table, p as position
        from pgtally.counter k
        join pgtally.consumer c on c.consumer_id = k.counter_id
        join pgtally.queue q using (queue_id)
        left join pgtally.source s using (queue_id),
        lateral pgtally.consumer_position(k.counter_id) p
        order by k.name
    loop
        name := counter.name;
        queue := counter.queue_name;
        source := counter.source_table::text;
        target := format('%s.%I', counter.target_table, counter.target_column);
        events := (counter.position).events;
        batches := (counter.position).batches;
        dropped_events := (counter.position).dropped_events;
        last_batch_at := case when batches > 0 then (counter.position).finished_at end;
        last_error := counter.last_error;
        last_error_at := counter.last_error_at;
        problems := pgtally.counter_problems(counter.name);
        execute format(
            'select p.events, coalesce(clock_timestamp() - least(p.oldest, c.oldest), interval ''0''), c.keys
            from (select count(*) as events, min(ev_time) as oldest from (%s) e) p,
                (select count(distinct key) as keys, min(since) as oldest from pgtally.carried_%s) c',
            case when counter.own_cluster
                then pgtally.events_query(counter.queue_id, (counter.position).end_boundary, null, 'ev_time')
                else format('select ev_time from pgtally.event_%s', counter.queue_id) end,
            counter.counter_id)
        into pending_events, lag, carried_keys;
        return next;
    end loop;
end
$$;

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

-- counts_query(counter, keys, after_key, last_key, against): SQL text of a query for the counts of these keys, or of this range of
-- keys: key, source, stored, carried, pending.
--
-- All are read by one statement, in one snapshot; there source = stored + carried + pending, and the difference is the key's
-- drift. While all works as it should it is 0 in every snapshot, and while writers and workers go on it stays what it is,
-- so whatever this measures can be corrected at any time later.
--
-- source: the rows of the source; 0 where the queue has none; or, with `against`, that column of the target. A key without a
-- row in the target is left out where on_missing is drop, since its events are dropped.
create or replace function pgtally.counts_query(counter pgtally.counter, keys text[], after_key text, last_key text, against name) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    source constant pgtally.source := (select s from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id);
    space constant record := pgtally.key_space(counter);
    filter text;
    parts text;
begin
    filter := pgtally.key_filter(counter.target_key, space.key_type, space.key_collation, keys, after_key, last_key);
    parts := format(
        'select %1$I::%2$s as key, %3$s as source, coalesce(%4$I, 0)::bigint as stored, 0::bigint as carried, 0::bigint as pending, true as has_row
        from %5$s where %6$s and %1$I is not null',
        counter.target_key, space.key_type, case when against is null then '0::bigint' else format('coalesce(%I, 0)::bigint', against) end,
        counter.target_column, counter.target_table, filter);
    if against is null and source.queue_id is not null then
        parts := parts || format(
            ' union all select %1$I::%2$s, %3$s, 0, 0, 0, false from %4$s where (%5$s) and %6$s group by %1$I',
            source.source_key, space.key_type,
            case when source.sum_expression is null then 'count(*)'
                else format('coalesce(pgtally.sum_delta((%s)::bigint), 0)', source.sum_expression) end,
            source.source_table, coalesce(source.where_condition, 'true'),
            pgtally.key_filter(source.source_key, space.key_type, space.key_collation, keys, after_key, last_key)
                || case when keys is null and after_key is null then format(' and %I is not null', source.source_key) else '' end);
    end if;
    return format(
        'select key, pgtally.sum_delta(source) as source, pgtally.sum_delta(stored) as stored,
            pgtally.sum_delta(carried) as carried, pgtally.sum_delta(pending) as pending
        from (%s
            union all select key, 0, 0, pgtally.sum_delta(delta), 0, false from pgtally.carried_%s where %s group by key
            union all select ev_key, 0, 0, 0, pgtally.sum_delta(ev_delta), false from (%s) e where %s group by ev_key
        ) parts group by key %s',
        parts, counter.counter_id, pgtally.key_filter('key', space.key_type, space.key_collation, keys, after_key, last_key),
        pgtally.pending_query(counter), pgtally.key_filter('ev_key', space.key_type, space.key_collation, keys, after_key, last_key),
        case counter.on_missing when 'drop' then 'having bool_or(has_row)' else '' end);
end
$$;

-- create_counter(counter_name, …): defines a counter, and with it its queue and its triggers.
--
-- source, source_key: the table whose rows are counted by that column. source_data: columns that each row's event brings along, as a JSON object, for consumers
-- of the queue; without it the rows of a statement are summed to one event for each key. where_condition: only rows for which it is true.
-- sum_expression: adds up this whole number instead of counting. target, target_key, target_column: where the count is
-- stored; without a target, in pgtally's own table count_<counter_id>. on_missing: what becomes of a key without a row in
-- the target: drop, insert or error; the default is drop, and insert for pgtally's own table. key_type: for a counter with
-- neither source nor target, whose events come from insert_event(). queue: follow that queue instead of a new
-- one named like the counter. rotation_period, retain: see create_queue(). milestones: thresholds, ascending; each that a key reaches is
-- recorded, and handed on as an event of the queue <counter_name>.milestones (record_milestones).
--
-- Counts what is written from now on. What the source holds already, against what the target holds already, is to be counted by
-- a reconciliation, while writers go on: CALL reconcile(counter_name), or reconcile_range(). Creating the triggers waits for the
-- transactions that are writing to the source, and makes others wait until the caller's transaction ends; set lock_timeout before.
--
-- The same definition again changes nothing and returns false; otherwise true. Twenty at once end well.
--
-- Errors: TL002 when a counter of that name has another definition, TL003 when an argument will not do; TL001 when
-- the queue does not exist; TL004 when the transaction is not READ COMMITTED; 42501 as require_owner().
create or replace function pgtally.create_counter(
    counter_name text,
    source regclass default null, source_key name default null, where_condition text default null, sum_expression text default null,
    target regclass default null, target_key name default null, target_column name default null,
    on_missing text default null, key_type text default null, queue text default null,
    rotation_period interval default null, retain interval default '0', source_data name[] default null,
    milestones bigint[] default null
) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off as $$
#variable_conflict use_variable
declare
    present jsonb;
    wanted jsonb;
    differences text;
    source_type text;
    target_type text;
    followed text;
    taken text;
    number integer;
    id integer;
begin
    perform pgtally.require_owner();
    perform pgtally.require_read_committed();
    if counter_name is null or counter_name = '' then
        raise exception 'A counter needs a name' using errcode = 'TL003', hint = 'Give a name that is not empty.';
    elsif (source is null) <> (source_key is null) then
        raise exception 'Counter "%": source and source_key belong together', counter_name
            using errcode = 'TL003', hint = 'Give both, or neither for a counter of events from insert_event().';
    elsif source is null and (where_condition is not null or sum_expression is not null or source_data is not null) then
        raise exception 'Counter "%": where_condition, sum_expression and source_data need a source', counter_name
            using errcode = 'TL003', hint = 'Name the source whose rows they are about.';
    elsif num_nulls(target, target_key, target_column) not in (0, 3) then
        raise exception 'Counter "%": target, target_key and target_column belong together', counter_name
            using errcode = 'TL003', hint = 'Give all three, or none to keep the counts in pgtally''s own table.';
    elsif source is not null and queue is not null then
        raise exception 'Counter "%": a counter either has a source or follows the queue of another', counter_name
            using errcode = 'TL003', hint = 'Leave one of source and queue out.';
    elsif queue is not null and (rotation_period is not null or retain <> interval '0') then
        raise exception 'Counter "%": rotation_period and retain are those of the queue "%"', counter_name, queue
            using errcode = 'TL003', hint = 'Leave them out where a counter follows a queue.';
    elsif on_missing not in ('drop', 'insert', 'error') then
        raise exception 'Counter "%": on_missing cannot be "%"', counter_name, on_missing
            using errcode = 'TL003', hint = 'Use drop, insert or error.';
    elsif cardinality(milestones) not between 1 and 100 or milestones[1] < 1
        or milestones <> array(select distinct m from unnest(milestones) m where m is not null order by m)
    then
        raise exception 'Counter "%": milestones cannot be %', counter_name, milestones
            using errcode = 'TL003', hint = 'Give 1 to 100 whole numbers above 0 in ascending order, each once.';
    end if;

    -- One definition at a time; neither writers nor batches need this lock.
    lock table pgtally.counter in share row exclusive mode;

    if source is not null then
        perform pgtally.require_source(counter_name, source);
        source_type := pgtally.require_key_column(counter_name, source, source_key);
        where_condition := pgtally.source_expression(source, where_condition, true);
        sum_expression := pgtally.source_expression(source, sum_expression, false);
        perform pgtally.require_data_columns(counter_name, source, source_data);
        perform pgtally.require_all_rows(counter_name, source);
    end if;
    if target is not null then
        target_type := pgtally.require_key_column(counter_name, target, target_key);
        perform pgtally.require_target(counter_name, target, target_key, target_column);
        perform pgtally.require_all_rows(counter_name, target);
    end if;
    rotation_period := coalesce(rotation_period, greatest(interval '5 minutes', retain));
    if queue is not null then
        number := pgtally.queue_id(queue);
        select q.key_type into followed from pgtally.queue q where q.queue_id = number;
    end if;
    -- Whole numbers of different widths compare with one another; nothing else does. The queue takes the wider.
    if source_type in ('smallint', 'integer') and target_type in ('integer', 'bigint') then
        source_type := case when source_type = 'integer' then target_type else 'bigint' end;
    end if;
    source_type := coalesce(followed, source_type, key_type, target_type, 'bigint');
    if key_type is distinct from source_type and key_type is not null
        or target_type is distinct from source_type and target_type is not null
            and not (target_type in ('smallint', 'integer', 'bigint') and source_type in ('smallint', 'integer', 'bigint'))
    then
        raise exception 'Counter "%": the key types do not match: % and %', counter_name, source_type,
            case when key_type is distinct from source_type and key_type is not null then key_type else target_type end
            using errcode = 'TL003', hint = 'Source, queue and target need keys of one type.';
    end if;

    wanted := jsonb_build_object(
        'queue', coalesce(queue, counter_name), 'key_type', source_type, 'rotation_period', case when queue is null then rotation_period end, 'retain', case when queue is null then retain end,
        'source', source::text, 'source_key', source_key, 'where', where_condition, 'sum', sum_expression, 'data', to_jsonb(source_data),
        'target', target::text, 'target_key', target_key, 'target_column', target_column,
        'on_missing', coalesce(on_missing, case when target is null then 'insert' else 'drop' end), 'milestones', to_jsonb(milestones));
    present := pgtally.counter_definition(counter_name);
    if present is not null then
        select string_agg(format('%s is %s, not %s', key, coalesce(present ->> key, 'none'), coalesce(wanted ->> key, 'none')), '; ' order by key)
        into differences from jsonb_object_keys(wanted) key where present -> key <> wanted -> key;
        if differences is not null then
            raise exception 'Counter "%" exists with another definition: %', counter_name, differences
                using errcode = 'TL002', hint = 'Use that definition, take another name, or drop the counter first.';
        end if;
        if source is not null then
            perform pgtally.sync_triggers(counter_name);
        end if;
        return false;
    end if;

    select k.name into taken from pgtally.counter k where k.target_table = target and k.target_column = create_counter.target_column;
    if taken is not null then
        raise exception 'Counter "%": the counter "%" adds to %.% already', counter_name, taken, target, target_column
            using errcode = 'TL002', hint = 'Drop that one first, or use another column.';
    end if;

    if queue is null and not pgtally.create_queue(counter_name, source_type, rotation_period, retain, true) then
        raise exception 'Counter "%": there is a queue of that name already', counter_name
            using errcode = 'TL002', hint = 'Give it as the queue to follow, or take another name.';
    end if;
    if not pgtally.register_consumer(coalesce(queue, counter_name), counter_name) then
        raise exception 'Counter "%": queue "%" has a consumer of that name already', counter_name, queue
            using errcode = 'TL002', hint = 'Take another name.';
    end if;
    number := pgtally.queue_id(coalesce(queue, counter_name));
    select c.consumer_id into strict id from pgtally.consumer c where c.queue_id = number and c.name = counter_name;

    execute format('create table pgtally.carry_%s (
        since timestamptz not null default clock_timestamp(), delta bigint not null, events bigint not null, reached bigint, key %s not null)', id, source_type);
    execute format('create index on pgtally.carry_%s (key)', id);
    -- What apply_batch() puts off for a moment, a hundred keys to a row: a row and an index entry for each key took three times as long.
    execute format('create table pgtally.packed_%1$s (
        since timestamptz not null default clock_timestamp(), keys %2$s[] not null, deltas bigint[] not null, events bigint[] not null)', id, source_type);
    execute format('create view pgtally.carried_%1$s as
        select key, delta, since from pgtally.carry_%1$s
        union all select u.key, u.delta, p.since from pgtally.packed_%1$s p, unnest(p.keys, p.deltas) u(key, delta)', id);
    if target is null then
        -- Half-empty pages: an update finds room beside the old version, so no index entry is written (HOT).
        execute format('create table pgtally.count_%s (value bigint not null, key %s primary key) with (fillfactor = 50)', id, source_type);
    end if;
    perform pgtally.renew_access(array(
        select relation from unnest(array['carry', 'packed', 'carried', 'count']) made, to_regclass(format('pgtally.%s_%s', made, id)) relation where relation is not null));
    insert into pgtally.counter (counter_id, name, target_table, target_key, target_column, on_missing, own_target, milestones)
    values (id, counter_name, coalesce(target, format('pgtally.count_%s', id)::regclass),
        coalesce(target_key, 'key'), coalesce(target_column, 'value'), wanted ->> 'on_missing', target is null, milestones);

    if source is not null then
        insert into pgtally.source (queue_id, source_table, source_key, where_condition, sum_expression, data_columns, tables)
        values (number, source, source_key, where_condition, sum_expression, source_data, '{}');
        perform pgtally.create_source(number);
        perform pgtally.sync_triggers(counter_name);
    end if;
    if exists (select from pgtally.source s where s.queue_id = number) then
        insert into pgtally.reconciliation (counter_id, reason) values (id, 'backfill');
    elsif milestones is not null and target is not null then
        -- No backfill will record them.
        execute format(
            'insert into pgtally.milestone (counter_id, key, threshold, value)
            select $1, t.%1$I::text, threshold, t.%2$I from %3$s t, unnest($2[:width_bucket(t.%2$I::bigint, $2)]) threshold
            where t.%2$I >= $2[1] and t.%1$I is not null',
            target_key, target_column, target)
        using id, milestones;
    end if;
    if milestones is not null and not pgtally.create_queue(counter_name || '.milestones', source_type) then
        raise exception 'Counter "%": there is a queue "%" already', counter_name, counter_name || '.milestones'
            using errcode = 'TL002', hint = 'Drop that queue first, or take another name.';
    end if;
    return true;
end
$$;

-- create_queue(queue_name, key_type, rotation_period, retain): makes a queue of events with keys of that type.
--
-- key_type: smallint, integer, bigint, uuid or text. rotation_period: how long writers stay in one of the three slots (NULL: 5 minutes, or retain if longer);
-- events take up space for about two to three periods. retain: how
-- long events are kept at least, for consumers that want to read again (seek); not longer than the rotation period. Returns true when it was made and false when the same queue was
-- already there. Guarantee: with a key of type text, an event's key has at most 2,000 bytes, so that every key fits a
-- btree index.
--
-- Errors: TL002 when a different queue has that name; TL003 when an argument will not do; 42501 as require_owner().
create or replace function pgtally.create_queue(
    queue_name text, key_type text default 'bigint', rotation_period interval default null, retain interval default '0', implicit boolean default false
) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    id integer;
    present pgtally.queue;
begin
    perform pgtally.require_owner();
    rotation_period := coalesce(rotation_period, greatest(interval '5 minutes', retain));
    if queue_name is null or queue_name = '' then
        raise exception 'A queue needs a name' using errcode = 'TL003', hint = 'Give a name that is not empty.';
    elsif key_type is null or key_type not in ('smallint', 'integer', 'bigint', 'uuid', 'text') then
        raise exception 'Queue "%": keys cannot be of type %', queue_name, coalesce(key_type, 'NULL')
            using errcode = 'TL003', hint = 'Use smallint, integer, bigint, uuid or text.';
    elsif rotation_period < interval '1 second' then
        raise exception 'Queue "%": the rotation period % is too short', queue_name, rotation_period
            using errcode = 'TL003', hint = 'Use one second or more; 5 minutes is the default.';
    elsif retain is null or retain not between interval '0' and rotation_period then
        raise exception 'Queue "%": events cannot be kept for % when the rotation period is %', queue_name, coalesce(retain::text, 'NULL'), rotation_period
            using errcode = 'TL003', hint = 'Give a rotation period that is as long, or leave it out.';
    end if;

    -- Twenty at once: one inserts, the others wait here for it and then find what it made.
    insert into pgtally.queue (name, key_type, rotation_period, retain, implicit)
    values (queue_name, key_type, rotation_period, retain, implicit)
    on conflict (name) do nothing
    returning queue_id into id;
    if id is null then
        select * into strict present from pgtally.queue q where q.name = queue_name;
        if (present.key_type, present.rotation_period, present.retain) is distinct from (key_type, rotation_period, retain) then
            raise exception 'Queue "%" exists with another definition: keys of type %, rotation period %, events kept for %',
                queue_name, present.key_type, present.rotation_period, present.retain
                using errcode = 'TL002', hint = 'Use that definition, take another name, or drop the queue first.';
        end if;
        return false;
    end if;

    -- Widest columns first, so that no space goes to alignment. The default of ev_txid is the top-level transaction's id,
    -- also inside a savepoint, which is the only kind that a snapshot lists.
    execute format(
        'create table pgtally.event_%s (
            ev_txid xid8 not null default pg_current_xact_id(),
            ev_time timestamptz not null default clock_timestamp(),
            ev_delta bigint not null,
            ev_key %s not null %s,
            ev_slot smallint not null default pgtally.slot_at(clock_timestamp(), %L),
            ev_data jsonb
        ) partition by list (ev_slot)',
        id, key_type, case key_type when 'text' then 'check (octet_length(ev_key) <= 2000)' else '' end, rotation_period);
    for slot in 0..2 loop
        -- Rows are only ever added, and taken away by TRUNCATE: there is nothing to vacuum.
        execute format('create table pgtally.event_%1$s_%2$s partition of pgtally.event_%1$s for values in (%2$s)
            with (autovacuum_enabled = off)', id, slot);
    end loop;
    -- With the key, a fresh count of one key need not fetch the other pending events: 3.4 ms instead of 13.7 ms at 41,000 pending (PostgreSQL 18,
    -- bigint), at 0 to 3 % more for inserting an event. Texts may be long, so they are not written twice.
    execute format('create index on pgtally.event_%s (ev_txid%s)', id, case key_type when 'text' then '' else ', ev_key' end);
    -- A statement of its own for each queue keeps its plan; insert_event() would have to plan it for each event.
    execute format(
        'create function pgtally.insert_event_%1$s(key text, delta bigint, data jsonb) returns void language plpgsql as
        $body$begin insert into pgtally.event_%1$s (ev_key, ev_delta, ev_data) values (key::pg_catalog.%2$s, delta, data); end$body$',
        id, (select typname from pg_type where oid = key_type::regtype));
    execute format('revoke all on function pgtally.insert_event_%s from public', id);
    perform pgtally.renew_access(array(
        select c.oid::regclass from pg_class c join pg_partition_tree(format('pgtally.event_%s', id)::regclass) t on t.relid = c.oid));
    return true;
end
$$;

-- create_source(queue_id): writes the trigger functions of a queue's source; sync_triggers() puts them on its tables. An upgrade writes them anew.
--
-- Triggers fire once for each statement and see its rows in transition tables, so bulk statements, COPY, MERGE, ON CONFLICT
-- and cascades are counted, summed by key first. A statement on a partitioned table fires that table's triggers only,
-- and one on a partition the partition's only: each gets its own (sync_triggers). TRUNCATE fires those of each table it
-- empties.
--
-- The rows of a statement are summed by key, unless they have data to bring. Most statements have one row, which is spared that: to sum it would cost 9 us of the server's time, to
-- ask in a statement before whether there are more 4 us, and to ask within the statement next to nothing; an INSERT of one row takes 57 us,
-- and 95 us with this (PostgreSQL 15, 16 connections; docs/benchmarks.md has what else was tried).
--
-- With data columns each row is an event of its own; an UPDATE takes back the old row and gives the new one, unless they are the same in key, delta and data.
--
-- The functions run with their owner's rights, so a writer needs none on pgtally. A SET search_path would cost a writer
-- some throughput, so where no expression is involved there is none: every name and operator is qualified instead (a test
-- shadows them). The queue's name is passed for the reader; nothing asks for the table's name, which is
-- another one on a shard.
create or replace function pgtally.create_source(queue_id integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    pinned constant text := 'set search_path = pg_catalog, pg_temp';
    source pgtally.source;
    delta text;
    plus text;
    minus text;
    data text := '';
    condition text;
    emit text;
    emit_sums text;
    of_changes text := ') changed(key, delta) group by 1 having pgtally.sum_delta(changed.delta) operator(pg_catalog.<>) 0';
    operation text;
    body text;
begin
    select * into strict source from pgtally.source s where s.queue_id = queue_id;
    delta := format('(%s)::pg_catalog.int8', coalesce(source.sum_expression, '1'));
    if source.data_columns is not null then
        data := format(', pg_catalog.jsonb_build_object(%s)', (select string_agg(format('%L, %I', c, c), ', ' order by n) from unnest(source.data_columns) with ordinality u(c, n)));
    end if;
    plus := format('select %I, %s%s from ', source.source_key, delta, data);
    minus := format('select %I, pg_catalog.int8um(%s)%s from ', source.source_key, delta, data);
    condition := format(' where %I is not null', source.source_key) || coalesce(' and (' || source.where_condition || ')', '');
    if source.sum_expression is not null then
        -- Neither 0 nor NULL.
        condition := condition || format(' and %s operator(pg_catalog.<>) 0', delta);
    end if;
    emit := format('insert into pgtally.event_%s (ev_key, ev_delta) ', queue_id);
    emit_sums := emit || 'select changed.key, pgtally.sum_delta(changed.delta) from (';
    if data <> '' then
        emit := format('insert into pgtally.event_%s (ev_key, ev_delta, ev_data) ', queue_id);
        emit_sums := emit || 'select changed.key, pgtally.sum_delta(changed.delta), changed.data from (';
        of_changes := ') changed(key, delta, data) group by 1, 3 having pgtally.sum_delta(changed.delta) operator(pg_catalog.<>) 0';
    end if;

    for operation, body in
        select change.operation, case when data <> '' then emit || change.selection || condition || ';' else format(
            '%s and not exists (select from %s offset 1);
            if not found then
                %s;
            end if;',
            emit || change.selection || condition, change.rows, emit_sums || change.selection || condition || of_changes) end
        from (values ('insert', 'new_rows', plus || 'new_rows'), ('delete', 'old_rows', minus || 'old_rows')) change(operation, rows, selection)
        union all
        values ('update', emit_sums || plus || 'new_rows' || condition || ' union all ' || minus || 'old_rows' || condition || of_changes || ';')
    loop
        execute format(
            'create or replace function pgtally.source_%s_%s() returns trigger language plpgsql security definer %s as %L',
            queue_id, operation,
            case when source.where_condition is null and source.sum_expression is null then '' else pinned end,
            format(E'#variable_conflict use_column\nbegin\n    %s\n    return null;\nend', body));
    end loop;

    -- TRUNCATE takes away rows that an older snapshot does not show, so the count of what goes needs a new one. The
    -- table's lock is held by then, so no row can come after it.
    execute format(
        'create or replace function pgtally.source_%s_truncate() returns trigger language plpgsql security definer %s as %L',
        queue_id, pinned || ' set row_security = off',
        format($body$
begin
    perform pgtally.require_read_committed();
    execute %L || tg_relid::regclass || %L;
    return null;
end
$body$,
            case when data <> '' then emit else emit_sums end || minus || 'only ', condition || case when data <> '' then '' else of_changes end));
    for operation in select unnest(array['insert', 'update', 'delete', 'truncate']) loop
        execute format('revoke all on function pgtally.source_%s_%s() from public', queue_id, operation);
    end loop;
end
$$;

-- current_boundary(): the transactions that have finished, as of now, for a consumer to take as its next boundary.
--
-- Call it in a statement after the one that locked the consumer: only then is every boundary that was stored before the
-- lock older than this one. In REPEATABLE READ the snapshot could be older than the lock, so that is refused.
--
-- A snapshot does not list its owner, whose later events would then count as given; so the caller's own transaction id,
-- where it has one, is added to those in progress.
--
-- Errors: TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.current_boundary() returns pg_snapshot
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    boundary constant pg_snapshot := pg_current_snapshot();
    own constant xid8 := pg_current_xact_id_if_assigned();
begin
    perform pgtally.require_read_committed();
    if own is null or not pg_visible_in_snapshot(own, boundary) then
        return boundary;
    end if;
    return format('%s:%s:%s', least(pg_snapshot_xmin(boundary), own), pg_snapshot_xmax(boundary),
        (select string_agg(xid::text, ',' order by xid)
         from (select pg_snapshot_xip(boundary) union select own) in_progress(xid)));
end
$$;

-- cut_boundary(boundary, before): the boundary with everything from transaction id `before` on left for later.
--
-- What it calls finished below `before` stays finished, what it lists as in progress below `before` stays listed. The
-- result need not be a state that the database was ever in; it is a set of transactions, which is all a batch needs.
create or replace function pgtally.cut_boundary(boundary pg_snapshot, before xid8) returns pg_snapshot
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
    select format('%s:%s:%s', least(pg_snapshot_xmin(boundary), before), before,
        (select string_agg(xid::text, ',' order by xid) from pg_snapshot_xip(boundary) xid where xid < before)
    )::pg_snapshot
$$;

-- cut_txid(queue_id, start_boundary, end_boundary, max_events): the first transaction id to leave for later, so that a batch has about
-- max_events events; NULL when it has no more than that anyway.
--
-- Only events that are in the batch uncut are looked at: the caller's own, which it sees, are not. Any answer is right, since a boundary can be cut anywhere; it is only to be found quickly. Counting through the index
-- takes as long as half the batch itself. But events are appended, so those from the first pending one on
-- lie together, about 120 to a page: look at the row that many pages on, in each slot. Only where that row is older than the
-- first pending event (a long transaction's) does it tell nothing, and then, as for a small batch, they are counted.
create or replace function pgtally.cut_txid(queue_id integer, start_boundary pg_snapshot, end_boundary pg_snapshot, max_events integer) returns xid8
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_bitmapscan = off set enable_sort = off as $$
declare
    events_per_page constant integer := 120;
    first_pending record;
    first_txid xid8;
    row_txid xid8;
    cut xid8;
begin
    for slot in 0..2 loop
        execute format('select ev_txid as txid, (ctid::text::point)[0]::bigint as page from pgtally.event_%s_%s
            where ev_txid >= $1 and pg_visible_in_snapshot(ev_txid, $2) order by ev_txid limit 1', queue_id, slot)
        into first_pending using pg_snapshot_xmax(start_boundary), end_boundary;
        if first_pending.txid is not null then
            execute format('select ev_txid from pgtally.event_%s_%s where ctid >= $1 limit 1', queue_id, slot)
            into row_txid using format('(%s,0)', first_pending.page + max_events / events_per_page)::tid;
            first_txid := least(first_txid, first_pending.txid);
            cut := least(cut, row_txid);
        end if;
    end loop;
    if max_events >= 100 * events_per_page and (cut is null or cut > first_txid) then
        return cut;
    end if;

    execute format('select ev_txid from pgtally.event_%s
        where ev_txid >= $1 and pg_visible_in_snapshot(ev_txid, $2) order by ev_txid offset $3 limit 1', queue_id)
    into cut using pg_snapshot_xmax(start_boundary), end_boundary, max_events;
    if cut = first_txid then
        -- The first transaction is always in, however large, or there would be no progress.
        execute format('select ev_txid from pgtally.event_%s where ev_txid > $1 and pg_visible_in_snapshot(ev_txid, $2) order by ev_txid limit 1', queue_id)
        into cut using first_txid, end_boundary;
    end if;
    return cut;
end
$$;

-- dead_letters(queue_name, consumer_name): the events that the consumer was not able to handle, oldest first.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.dead_letters(queue_name text, consumer_name text)
returns setof pgtally.failed_event language sql stable set search_path = pg_catalog, pg_temp as $$
    select f.* from pgtally.failed_event f
    where f.consumer_id = (pgtally.require_reader(queue_name, consumer_name)).consumer_id and f.retry_at is null
    order by f.failed_event_id
$$;

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
begin
    lock table pgtally.counter in share row exclusive mode;
    counter := pgtally.require_counter(counter_name);
    select q.* into queue from pgtally.queue q join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id;
    -- Waits for the batch in hand.
    perform pgtally.lock_consumer(queue.name, counter_name);
    delete from pgtally.counter k where k.counter_id = counter.counter_id;
    delete from pgtally.reconciliation r where r.counter_id = counter.counter_id;
    delete from pgtally.last_audit a where a.counter_id = counter.counter_id;
    delete from pgtally.batch b where b.consumer_id = counter.counter_id;
    delete from pgtally.consumer c where c.consumer_id = counter.counter_id;
    execute format('drop table pgtally.carry_%1$s, pgtally.packed_%1$s cascade', counter.counter_id);
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

-- drop_queue(queue_name): removes a queue with its events and the triggers of its source.
--
-- Errors: TL001 when there is no such queue; TL010 while it has consumers or counters, or is that of a counter's milestones.
create or replace function pgtally.drop_queue(queue_name text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.queue_id(queue_name);
    consumers text;
    milestones_of text;
begin
    -- No consumer can be registered from here on: its foreign key needs this row.
    perform from pgtally.queue q where q.queue_id = id for update;
    select string_agg(format('%I', c.name), ', ' order by c.name) into consumers from pgtally.consumer c where c.queue_id = id;
    if consumers is not null then
        raise exception 'Queue "%" is still read by: %', queue_name, consumers
            using errcode = 'TL010', hint = 'Drop these counters or unregister these consumers first.';
    end if;
    select k.name into milestones_of from pgtally.counter k where k.milestones is not null and k.name || '.milestones' = queue_name;
    if milestones_of is not null then
        raise exception 'Queue "%" is that of the milestones of the counter "%"', queue_name, milestones_of
            using errcode = 'TL010', hint = 'It is dropped with the counter.';
    end if;
    perform pgtally.drop_source(id);
    execute format('drop function pgtally.insert_event_%s(text, bigint, jsonb)', id);
    execute format('drop table pgtally.event_%s', id);
    delete from pgtally.queue q where q.queue_id = id;
end
$$;

-- drop_source(queue_id): takes the triggers of a queue's source off its table and partitions.
create or replace function pgtally.drop_source(queue_id integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    operation text;
begin
    -- With the functions go the triggers, wherever they are.
    for operation in select unnest(array['insert', 'update', 'delete', 'truncate']) loop
        execute format('drop function if exists pgtally.source_%s_%s() cascade', queue_id, operation);
    end loop;
    delete from pgtally.source s where s.queue_id = drop_source.queue_id;
end
$$;

-- due_batch(queue_name, consumer_name, min_events, max_wait, in_order): whether claim_batch() with these arguments would give a batch, if nobody is
-- faster; for a process that polls. Assigns no transaction id.
--
-- Errors: TL001 when there is no such queue or consumer; TL005 as require_own_cluster(); TL010 when it is a counter.
create or replace function pgtally.due_batch(
    queue_name text, consumer_name text, min_events integer default 1, max_wait interval default '0', in_order boolean default true
) returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
    open_batches integer;
    claimable boolean;
begin
    if consumer.paused_at is not null then
        return false;
    end if;
    perform pgtally.require_own_cluster(consumer);
    select count(*), coalesce(bool_or(b.claimed_until <= clock_timestamp()), false) into open_batches, claimable
    from pgtally.batch b where b.consumer_id = consumer.consumer_id and b.finished_at is null;
    if claimable or in_order and open_batches > 0 then
        return claimable;
    end if;
    return pgtally.due_failed_events(consumer.consumer_id) <> '{}'
        or pgtally.has_events(consumer.queue_id, (pgtally.consumer_position(consumer.consumer_id)).end_boundary, null, min_events, max_wait);
end
$$;

-- due_counters(seen): the counters that have something to apply, for a worker that polls.
--
-- events: there are events to be had. carried: something is carried. Assigns no transaction id. seen: the snapshot of
-- an earlier call that found nothing; while no transaction has finished since, there can be nothing new, and no counter is
-- looked at. A counter whose boundary is another cluster's is due while there is any event, so that apply_batch() says why
-- it cannot go on.
--
-- Slots have no statistics, and without an upper end the planner takes a third of a slot for pending: it would read all that is consumed, 100 ms for a million
-- events, instead of looking at the end of the index.
create or replace function pgtally.due_counters(seen pg_snapshot default null)
returns table (name text, events boolean, carried boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp 
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
    own_cluster constant bigint := pgtally.system_identifier();
    counter record;
begin
    if seen::text = pg_current_snapshot()::text then
        return;
    end if;
    for counter in
        select k.counter_id, k.name, c.queue_id, p.end_boundary, c.system_identifier
        from pgtally.counter k
        join pgtally.consumer c on c.consumer_id = k.counter_id,
        -- As consumer_position(), written out: this is what an idle worker spends its time on.
        lateral (select b.end_boundary from pgtally.batch b where b.consumer_id = k.counter_id order by b.batch_id desc limit 1) p
    loop
        execute format('select exists (%s), exists (select from pgtally.carried_%s)',
            case when counter.system_identifier = own_cluster
                then pgtally.events_query(counter.queue_id, counter.end_boundary, null)
                else format('select from pgtally.event_%s', counter.queue_id) end,
            counter.counter_id)
        into due_counters.events, due_counters.carried;
        if due_counters.events or due_counters.carried then
            due_counters.name := counter.name;
            return next;
        end if;
    end loop;
end
$$;

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

-- estimated_keys(counter): how many rows the target has, by the statistics; NULL when there are none.
create or replace function pgtally.estimated_keys(counter pgtally.counter) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select nullif(sum(greatest(c.reltuples, 0)), 0)::bigint
    from pg_class c
    where c.relkind = 'r' and (c.oid = counter.target_table or c.oid in (select relid from pg_partition_tree(counter.target_table)))
$$;

-- event_table(queue_name): the table of a queue's events, for an INSERT of (ev_key, ev_delta) in the same statement as what it stands for.
--
-- The fastest way to emit, without a function or a trigger; it takes the right to INSERT there. Nobody checks then that each row that
-- is counted has its event: where any program can write to the table, a source with its triggers is the way.
--
-- Errors: TL001 when there is no such queue.
create or replace function pgtally.event_table(queue_name text) returns regclass
language sql stable set search_path = pg_catalog, pg_temp as $$
    select format('pgtally.event_%s', pgtally.queue_id(queue_name))::regclass
$$;

-- events_query(queue_id, start_boundary, end_boundary, columns): the SQL text of a query for the events between two boundaries,
-- or for all visible events after the first, where end_boundary is NULL. The one place that says what a batch is.
--
-- An event is in it when its transaction had not finished at start_boundary and has at end_boundary. Either its id was
-- not yet given out (>= xmax) or it was listed as in progress. Two branches, so that each is an index scan; they
-- share no event, since a snapshot lists only ids below its xmax.
--
-- Text and not a set-returning function because the key's type differs from queue to queue. The comparison with xmin
-- only spares most events the call of pg_visible_in_snapshot.
create or replace function pgtally.events_query(queue_id integer, start_boundary pg_snapshot, end_boundary pg_snapshot, columns text default '*')
returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    finished_since constant xid8[] := array(
        select xid from pg_snapshot_xip(start_boundary) xid
        where end_boundary is null or pg_visible_in_snapshot(xid, end_boundary));
    selection text := format('select %s from pgtally.event_%s where ev_txid >= %L::xid8', columns, queue_id, pg_snapshot_xmax(start_boundary));
begin
    if end_boundary is not null then
        selection := selection || format(' and ev_txid < %L::xid8 and (ev_txid < %L::xid8 or pg_visible_in_snapshot(ev_txid, %L::pg_snapshot))',
            pg_snapshot_xmax(end_boundary), pg_snapshot_xmin(end_boundary), end_boundary);
    end if;
    if cardinality(finished_since) > 0 then
        selection := selection || format(' union all select %s from pgtally.event_%s where ev_txid = any (%L::xid8[])', columns, queue_id, finished_since);
    end if;
    return selection;
end
$$;

-- export_batch(batch_id): an open batch as receive_batch() in another database takes it: what tells it from every other one, and its events summed by key; keys
-- of which the sum is 0 are left out.
--
-- In batch: where it is from, its number and token, those of the batch that it follows, and whether it is the first of its consumer. What it follows has no number
-- where it is no batch that was claimed, but where the consumer was registered or moved to. Batches of a consumer are numbered in order, and the one before an open batch is kept (rotate).
--
-- Errors: as get_batch_events().
create or replace function pgtally.export_batch(batch_id bigint, out batch jsonb, out keys text[], out deltas bigint[])
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    select coalesce(array_agg(d.key), '{}'), coalesce(array_agg(d.delta), '{}') into keys, deltas
    from pgtally.get_batch_deltas(batch_id) d where d.delta <> 0;
    select jsonb_build_object('cluster', pgtally.system_identifier(), 'database', current_database(), 'queue', q.name, 'consumer', c.name,
        'number', b.batch_id, 'token', b.token, 'follows', p.token, 'follows_number', case when p.claim > 0 then p.batch_id end, 'is_first', p.batches = 0)
    into strict batch
    from pgtally.batch b join pgtally.consumer c using (consumer_id) join pgtally.queue q using (queue_id),
        lateral (select * from pgtally.batch o where o.consumer_id = b.consumer_id and o.batch_id < b.batch_id order by o.batch_id desc limit 1) p
    where b.batch_id = export_batch.batch_id;
end
$$;

-- fail_event(queue_name, consumer_name, …): keeps an event that the consumer could not handle, in the transaction that finishes its batch.
--
-- retry_in: after that time it is given again, with other failed events; NULL makes it a dead letter at once. attempts: how often it was handled in vain.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.fail_event(
    queue_name text, consumer_name text, ev_id text, ev_time timestamptz, ev_key text, ev_delta bigint, ev_data jsonb,
    attempts integer, reason text, retry_in interval default null
) returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
begin
    insert into pgtally.failed_event (consumer_id, ev_id, ev_time, ev_key, ev_delta, ev_data, attempts, reason, retry_at)
    values (consumer.consumer_id, ev_id, ev_time, ev_key, ev_delta, ev_data, attempts, reason, clock_timestamp() + retry_in);
end
$$;

-- finish_applying(counter, dropped_events, changed, report, notify): the end of a transaction that has added to a counter's target outside a batch.
--
-- Adds to the total of dropped events. Where somebody is told what was changed (report, notify), that gets a version: the number of a new row of batch, which repeats
-- the position. So the newest row of batch is the version of all that is stored, in any one snapshot (counter_version).
--
-- The caller holds the consumer's lock, unless nothing was dropped and nobody is told. Returns the number of the row; NULL when none was needed.
create or replace function pgtally.finish_applying(counter pgtally.counter, dropped_events bigint, changed bigint, report boolean, notify boolean) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    told constant boolean := (report or notify) and changed > 0;
    position pgtally.batch;
    version bigint;
begin
    if told or dropped_events > 0 then
        -- wait_for_carried() may come without it.
        perform from pgtally.consumer c where c.consumer_id = counter.counter_id for update;
        position := pgtally.consumer_position(counter.counter_id);
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
        values (counter.counter_id, position.end_boundary, position.end_boundary, clock_timestamp(),
            position.batches, position.events, position.dropped_events + coalesce(finish_applying.dropped_events, 0))
        returning batch_id into version;
    end if;
    if told and notify then
        perform pgtally.notify_applied(counter, version);
    end if;
    return version;
end
$$;

-- finish_batch(batch_id, claim): ends the batch; a later one begins where this one ended.
--
-- claim: what claim_batch() gave; without it for a batch of next_batch(). Whatever the transaction has done besides commits together with it. Of two
-- workers that were given the same batch, the second gets an error, so that its work is rolled back.
--
-- Errors: TL001 when there is no open batch of that number; TL011 when it is another's (any more).
create or replace function pgtally.finish_batch(batch_id bigint, claim integer default 0) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    update pgtally.batch b set finished_at = clock_timestamp()
    where b.batch_id = finish_batch.batch_id and b.finished_at is null and b.claim = finish_batch.claim;
    if not found then
        if exists (select from pgtally.batch b where b.batch_id = finish_batch.batch_id and b.finished_at is null) then
            perform pgtally.lock_batch(batch_id, claim);
        end if;
        raise exception 'There is no open batch %', batch_id
            using errcode = 'TL001', hint = 'It was finished already, perhaps by another worker: roll this transaction back.';
    end if;
    delete from pgtally.failed_event f where f.batch_id = finish_batch.batch_id;
end
$$;

-- get_batch_deltas(batch_id): the events of an open batch, summed by key; the key as text.
--
-- Errors: as get_batch_events().
create or replace function pgtally.get_batch_deltas(batch_id bigint)
returns table (key text, delta bigint, events bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp set work_mem = '64MB' as $$
begin
    return query execute format(
        'select ev_key::text, pgtally.sum_delta(ev_delta), count(*) from (%s) e group by ev_key
        union all select ev_key, pgtally.sum_delta(ev_delta), count(*) from pgtally.failed_event where batch_id = %L group by ev_key',
        pgtally.batch_query(batch_id, 'ev_key, ev_delta'), batch_id);
end
$$;

-- get_batch_events(batch_id): the events of an open batch, in the order of their transactions' ids, and in that of time within each.
--
-- May be read as often as wanted, or not at all: finish_batch() ends the whole batch. The key is given as text. ev_id is the event's identity in this
-- cluster, the same each time it is given: transaction id, slot, page and line. attempts: how often it was handled in vain (fail_event()).
--
-- Errors: TL001 when there is no open batch of that number; TL004 when the transaction is not READ COMMITTED (an older
-- snapshot could miss some of the events).
create or replace function pgtally.get_batch_events(batch_id bigint)
returns table (ev_id text, ev_txid xid8, ev_time timestamptz, ev_key text, ev_delta bigint, ev_data jsonb, attempts integer)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    return query execute format(
        'select ev_txid || ''.'' || ev_slot || translate(ctid::text, ''(,)'', ''..''), ev_txid, ev_time, ev_key::text, ev_delta, ev_data, 0
        from (%s) e order by ev_txid, ev_time',
        pgtally.batch_query(batch_id, 'ctid, *'));
    return query
        select f.ev_id, split_part(f.ev_id, '.', 1)::xid8, f.ev_time, f.ev_key, f.ev_delta, f.ev_data, f.attempts
        from pgtally.failed_event f where f.batch_id = get_batch_events.batch_id order by f.failed_event_id;
end
$$;

-- get_counts(counter_name, keys): the stored counts of these keys, each key as it was given; a key without a row in the
-- target has no row here either.
--
-- Row-level security of the target applies, as for any other reader.
--
-- Errors: TL001 when there is no such counter; TL003 when its target was dropped; 22P02 when a key is not of the queue's type.
create or replace function pgtally.get_counts(counter_name text, keys text[]) returns table (key text, count bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform pgtally.require_table(counter.name, 'target', counter.target_table);
    return query execute format(
        'select given.key, coalesce(t.%2$I, 0)::bigint
        from unnest($1) given(key) join %3$s t on t.%1$I = given.key::%4$s and t.%1$I = any ($1::%4$s[])',
        counter.target_key, counter.target_column, counter.target_table, pgtally.key_type(counter))
    using keys;
end
$$;

-- get_fresh_counts(counter_name, keys): the exact counts of these keys, each key as it was given: stored + carried + pending, however far
-- the worker is behind.
--
-- All in the snapshot of the caller's statement; so in a transaction of its own it includes what that has emitted so far.
-- A key without a row in the target has the count 0 where on_missing is drop, since whatever is still pending for it will be dropped.
-- Reads through the counter's pending events, so it takes longer the more there are.
--
-- Errors: TL001 when there is no such counter; TL003 when its target was dropped; TL004 as require_young_snapshot(); TL005 as require_own_cluster(); 22P02 when a key is not of the queue's type.
create or replace function pgtally.get_fresh_counts(counter_name text, keys text[])
returns table (key text, stored bigint, carried bigint, pending bigint)
language plpgsql stable
-- The slots have no statistics, without which the planner would read them whole, and sort what it finds.
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_sort = off as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
begin
    perform pgtally.require_table(counter.name, 'target', counter.target_table);
    perform pgtally.require_own_cluster(consumer);
    return query execute format(
        'select given.key, coalesce(parts.stored, 0), coalesce(parts.carried, 0), coalesce(parts.pending, 0)
        from unnest($1, $1::%1$s[]) given(key, typed)
        left join (
            select key, pgtally.sum_delta(stored) as stored, pgtally.sum_delta(carried) as carried, pgtally.sum_delta(pending) as pending
            from (
                select %2$I::%1$s as key, coalesce(%3$I, 0)::bigint as stored, 0::bigint as carried, 0::bigint as pending
                from %4$s where %2$I = any ($1::%1$s[])
                union all select key, null, delta, 0 from pgtally.carried_%5$s where key = any ($1::%1$s[])
                union all select ev_key, null, 0, pgtally.sum_delta(ev_delta) from (%6$s) e where ev_key = any ($1::%1$s[]) group by ev_key
            ) all_parts
            group by key %7$s
        ) parts on parts.key = given.typed',
        pgtally.key_type(counter), counter.target_key, counter.target_column, counter.target_table, counter.counter_id,
        -- In a stable function, position and events are seen in one snapshot.
        pgtally.events_query(consumer.queue_id, (pgtally.consumer_position(counter.counter_id)).end_boundary, null, 'ev_key, ev_delta'),
        case counter.on_missing when 'drop' then 'having count(stored) > 0' else '' end)
    using keys;
    -- Not before: now the slots are locked. No rotation period is shorter than a second; but a standby may go through a period in no time.
    if pg_is_in_recovery() or clock_timestamp() - transaction_timestamp() > interval '0.9 seconds' then
        perform pgtally.require_young_snapshot(consumer.queue_id);
    end if;
end
$$;

-- get_milestones(counter_name, of_key): which thresholds the counter's keys have reached, or that key, in the order in which they were recorded.
--
-- value: what was stored then, or what a reconciliation has found; several thresholds have one value where the count jumped over them.
--
-- Errors: TL001 when there is no such counter; 22P02 when the key is not of the queue's type.
create or replace function pgtally.get_milestones(counter_name text, of_key text default null)
returns table (key text, threshold bigint, value bigint, reached_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    -- As it was recorded: a uuid has several spellings.
    execute format('select $1::%s::text', pgtally.key_type(counter)) into of_key using of_key;
    return query select m.key, m.threshold, m.value, m.reached_at from pgtally.milestone m
    where m.counter_id = counter.counter_id and (of_key is null or m.key = of_key)
    order by m.reached_at, m.key, m.threshold;
end
$$;

-- grant_access(writers, readers, workers): gives existing roles the rights on pgtally that they need, on what is there and on what is made later.
--
-- writers: may add events to counters and queues that have no source, and ask whether one is stored. A role that only writes to a source needs nothing. readers: may read
-- definitions, counts, status and dead letters, and audit. workers: may apply, clean up, and run consumers. A role may be several. The rights on the user's own tables are not
-- given: missing_rights() says which. Again it changes nothing; nothing is taken away (revoke_access).
--
-- Errors: TL001 when there is no such role.
create or replace function pgtally.grant_access(writers text[] default '{}', readers text[] default '{}', workers text[] default '{}') returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    schema constant regnamespace := (select relnamespace from pg_class where oid = 'pgtally.access'::regclass);
    given record;
begin
    -- No queue is made meanwhile, which would be missed here while it misses this (renew_access).
    lock table pgtally.access in share row exclusive mode;
    for given in
        select role_name, kind, exists (select from pg_roles r where r.rolname = role_name) as role_exists
        from (
            select unnest(writers), 'writer' union select unnest(readers), 'reader' union select unnest(workers), 'worker'
        ) wanted(role_name, kind)
    loop
        if given.role_exists is not true then
            raise exception 'There is no role "%"', given.role_name
                using errcode = 'TL001', hint = format('Create it: CREATE ROLE %I LOGIN.', given.role_name);
        end if;
        execute format('grant usage on schema %s to %I', schema, given.role_name);
        insert into pgtally.access (role_name, kind) values (given.role_name, given.kind) on conflict do nothing;
    end loop;
    perform pgtally.renew_access();
end
$$;

-- has_events(queue_id, start_boundary, end_boundary, min_events, max_wait): whether there are so many between the two, or any
-- that has waited so long. Found at the end of the index, see due_counters().
create or replace function pgtally.has_events(queue_id integer, start_boundary pg_snapshot, end_boundary pg_snapshot, min_events integer, max_wait interval)
returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
    enough boolean;
begin
    execute format(
        'select count(*) >= $1 or min(ev_time) <= clock_timestamp() - $2 from (select ev_time from (%s) e limit $1) first',
        pgtally.events_query(queue_id, start_boundary, end_boundary, 'ev_time'))
    into enough using min_events, max_wait;
    return coalesce(enough, false);
end
$$;

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

-- insert_missing(counter, missing_keys): inserts target rows with a count of 0; returns the keys for which it did.
--
-- The part of add_deltas() for on_missing = insert. Another transaction may have inserted the same key meanwhile; or it
-- has and is not committed yet: then the unique index makes us wait, with rows of the target locked. lock_timeout ends that
-- well before anyone's deadlock_timeout (1 s by default). So that one such key does not hold up the others for good, they
-- are then inserted one by one, in changing order, until a few more have timed out.
create or replace function pgtally.insert_missing(counter pgtally.counter, missing_keys anyarray) returns anyarray
language plpgsql volatile
set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '50ms' as $$
declare
    key_type constant text := (select format_type(typelem, null) from pg_type where oid = pg_typeof(missing_keys)::oid);
    statement constant text := format(
        'with inserted as (
            insert into %1$s (%2$I, %3$I) select key, 0 from pg_catalog.unnest($1) key on conflict (%2$I) do nothing returning %2$I::%4$s as key
        )
        select coalesce(pg_catalog.array_agg(key), ''{}'') from inserted',
        counter.target_table, counter.target_key, counter.target_column, key_type);
    session_path constant text := pgtally.session_search_path(counter.target_table);
    one_key missing_keys%type;
    inserted missing_keys%type;
    all_inserted missing_keys%type := '{}';
    timeouts integer := 0;
begin
    begin
        perform set_config('search_path', session_path, true);
        execute statement into all_inserted using missing_keys;
        return all_inserted;
    exception when lock_not_available then
        perform set_config('lock_timeout', '10ms', true);
    end;
    for one_key in select array[key] from unnest(missing_keys) key order by random() loop
        begin
            perform set_config('search_path', session_path, true);
            execute statement into inserted using one_key;
            perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            all_inserted := all_inserted || inserted;
        exception when lock_not_available then
            timeouts := timeouts + 1;
        end;
        exit when timeouts = 5;
    end loop;
    return all_inserted;
end
$$;

-- is_backfilling(counter_id): whether rows that were there before the counter are still to be counted.
create or replace function pgtally.is_backfilling(counter_id integer) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select exists (select from pgtally.reconciliation r where r.counter_id = $1 and r.reason = 'backfill')
$$;

-- is_indexed(relation, column_name, key_collation): whether an index finds rows by a range of that column (for text: in that collation's order).
create or replace function pgtally.is_indexed(relation regclass, column_name name, key_collation regcollation) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select exists (
        select from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        join pg_opclass o on o.oid = i.indclass[0]
        join pg_am m on m.oid = o.opcmethod
        where i.indrelid = relation and a.attname = column_name and i.indisvalid and i.indpred is null
            and m.amname = 'btree' and o.opcdefault and i.indcollation[0] in (0, key_collation))
$$;

-- is_stored(counter_name, txid, key): whether the stored counts include all that the transaction has emitted to the counter's queue, or
-- where a key is given, the stored count of that key.
--
-- False while the transaction is in progress, and on a standby until its end was replayed there; true for one that was rolled back, or has emitted nothing there. What may still
-- be carried is what was carried when the counter first went past the transaction, by the time of the server's clock.
--
-- Each statement below has a younger snapshot than the one before (in READ COMMITTED): what had ended is seen by whoever looks for its events, and
-- what was taken by then is seen by whoever looks where it went. A standby's snapshots do not list what is in progress, so there that is asked apart.
--
-- Runs with its owner's rights: EXECUTE on it is all that a writer needs.
--
-- Errors: TL001 when there is no such counter; TL004 on a standby when the transaction is not READ COMMITTED; TL005 as require_own_cluster(); 22P02 when the key is not of the queue's type.
create or replace function pgtally.is_stored(counter_name text, txid xid8, key text default null) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
    taken_at timestamptz;
    waiting boolean;
begin
    perform pgtally.require_own_cluster(consumer);
    if not pg_visible_in_snapshot(txid, pg_current_snapshot()) then
        return false;
    end if;
    if pg_is_in_recovery() then
        perform pgtally.require_read_committed();
        if pg_xact_status(txid) = 'in progress' then
            return false;
        end if;
    end if;
    execute format('select exists (select from (%s) e where ev_txid = $1)',
        pgtally.events_query(consumer.queue_id, (pgtally.consumer_position(counter.counter_id)).end_boundary, null))
    into waiting using txid;
    if waiting then
        return false;
    end if;
    select min(b.finished_at) into taken_at from pgtally.batch b
    where b.consumer_id = counter.counter_id and pg_visible_in_snapshot(txid, b.end_boundary);
    if taken_at is null then
        -- The boundary moves with events only, so it may lie before a transaction that has emitted none.
        return true;
    end if;
    execute format('select exists (select from pgtally.carried_%s where since <= $1 and ($2 is null or key = $2::%s))',
        counter.counter_id, pgtally.key_type(counter))
    into waiting using taken_at, key;
    return not waiting;
end
$$;

-- is_unique_key(relation, key): whether a unique index makes sure that a value of that column means one row at most.
create or replace function pgtally.is_unique_key(relation regclass, key name) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select exists (
        select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indrelid = relation and a.attname = key and i.indnkeyatts = 1
            and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null)
$$;

-- key_filter(column_name, key_type, key_collation, keys, after_key, last_key): the SQL condition for a column to be one of `keys`, or
-- where that is NULL, to be greater than after_key and not greater than last_key (NULL: no such bound).
--
-- On the bare column, so that its index can be used. Text is ordered by one collation everywhere, or the ranges of two
-- tables would not be the same keys.
create or replace function pgtally.key_filter(
    column_name name, key_type text, key_collation regcollation, keys text[], after_key text, last_key text
) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    collation_clause constant text := case when key_type = 'text' then format(' collate %s', key_collation) else '' end;
    filter text := 'true';
begin
    if keys is not null then
        return format('%I = any (%L::%s[])', column_name, keys, key_type);
    end if;
    if after_key is not null then
        filter := filter || format(' and %I > %L::%s%s', column_name, after_key, key_type, collation_clause);
    end if;
    if last_key is not null then
        filter := filter || format(' and %I <= %L::%s%s', column_name, last_key, key_type, collation_clause);
    end if;
    return filter;
end
$$;

-- key_space(counter): how the counter's keys are compared while it is measured: their type, and for text the collation.
--
-- A key of source or target may be beyond the range of the queue's, so whole numbers are all taken as bigint. The order of
-- texts is that of the target, whose index is the one that is always there.
create or replace function pgtally.key_space(counter pgtally.counter, out key_type text, out key_collation regcollation)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    key_type := pgtally.key_type(counter);
    if key_type in ('smallint', 'integer') then
        key_type := 'bigint';
    end if;
    key_collation := (
        select a.attcollation::regcollation from pg_attribute a
        where a.attrelid = counter.target_table and a.attname = counter.target_key and not a.attisdropped);
end
$$;

-- key_type(counter): the type of the keys in the counter's queue.
create or replace function pgtally.key_type(counter pgtally.counter) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select q.key_type from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = counter.counter_id
$$;

-- latest_dead_letters(max_letters): what consumers of all queues were not able to handle, the latest first. number: as in replay_dead_letters().
--
-- Without the events' data, so that whoever looks after consumers need not see that; though a reason may quote some.
create or replace function pgtally.latest_dead_letters(max_letters integer default 20)
returns table (number bigint, queue text, consumer text, key text, attempts integer, failed_at timestamptz, reason text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select f.failed_event_id, q.name, c.name, f.ev_key, f.attempts, f.failed_at, f.reason
    from pgtally.failed_event f join pgtally.consumer c using (consumer_id) join pgtally.queue q using (queue_id)
    where f.retry_at is null
    order by f.failed_event_id desc limit max_letters
$$;

-- lock_batch(batch_id, claim): keeps a claimed batch for the caller's transaction, however long that takes.
--
-- Errors: TL011 when it is not the caller's (any more): it was taken over, or finished.
create or replace function pgtally.lock_batch(batch_id bigint, claim integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    perform from pgtally.batch b where b.batch_id = lock_batch.batch_id and b.claim = lock_batch.claim and b.finished_at is null for update;
    if not found then
        raise exception 'Batch % is not yours, or not any more', batch_id
            using errcode = 'TL011', hint = 'Another process has taken it over, or finished it: drop what you did with it.';
    end if;
end
$$;

-- lock_consumer(queue_name, consumer_name): locks a consumer's row until the end of the transaction; returns its number.
--
-- Errors: TL001 when there is no such queue or consumer.
create or replace function pgtally.lock_consumer(queue_name text, consumer_name text) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    queue constant integer := pgtally.queue_id(queue_name);
    id integer;
begin
    select c.consumer_id into id from pgtally.consumer c where c.queue_id = queue and c.name = consumer_name for update;
    if id is null then
        raise exception 'Queue "%" has no consumer "%"', queue_name, consumer_name
            using errcode = 'TL001', hint = 'Make it with register_consumer().';
    end if;
    return id;
end
$$;

-- lock_corrections(counter_name): the counter, with its row locked until the end of the transaction, so that nobody else corrects it.
--
-- Whoever measures and corrects must not do so beside another who does, or both correct the same. Batches do not need this lock.
--
-- Errors: TL001 when there is no such counter; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.lock_corrections(counter_name text) returns pgtally.counter
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtally.require_read_committed();
    perform from pgtally.counter k where k.name = counter_name for update;
    return pgtally.require_counter(counter_name);
end
$$;

-- lock_counter(counter_name): locks the counter's consumer until the end of the transaction.
--
-- Returns the counter, or NULL when another transaction is at work for it.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.lock_counter(counter_name text) returns pgtally.counter
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
begin
    perform from pgtally.consumer c where c.consumer_id = counter.counter_id for update skip locked;
    if not found then
        return null;
    end if;
    return counter;
end
$$;

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
    carried constant text := format('^(carry|packed)_%s$', counter_id);
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
                    or c.relnamespace = (select relnamespace from pg_class where oid = 'pgtally.queue'::regclass)
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

-- measure(counter, keys, after_key, max_keys, against, correcting, max_drifts): compares source and counts of these keys, or where they are NULL of the
-- next range of about max_keys keys after after_key, and corrects the difference if so asked.
--
-- TRUNCATE, by the application or by rotate(), does not respect older snapshots: so the tables are locked first
-- (lock_measured), and the snapshot is that of a later statement. Batches go on meanwhile, since position
-- and events come from that one snapshot.
--
-- A correction is a delta of the size of the drift in the counter's carry table, written by the statement that has
-- measured it. It commutes with all other deltas, whoever adds them and when, and is added to the target like them. It is not an event of the
-- queue because other consumers may follow that, whose counts are another matter.
--
-- Two corrections of one drift would be one too many: a caller that is correcting has locked the counter's row, in an earlier
-- statement, so that this one sees what was corrected before.
--
-- A correction of rows that existed before is no news. So where the counter has milestones, each says what its key had reached in that snapshot without
-- pending events, which are news: up to there they are recorded and not handed on, whenever and in whatever order all of that is added (record_milestones). A
-- backfill says it also for keys that do not drift, as their counts may be older than the counter.
--
-- last_key: the last key of the range; NULL when there is none after it. checked_keys: how many keys were compared. drifting_keys: how many drift. drifting: the first max_drifts of these (NULL:
-- all), each with its counts, as text (JSON's numbers end at 2^53 in many languages).
--
-- Errors: TL003 when max_keys is below 1, when source or target was dropped, and as require_all_rows(); TL004 when the transaction is not READ COMMITTED; TL005 as pending_query().
create or replace function pgtally.measure(
    counter pgtally.counter, keys text[], after_key text, max_keys integer, against name, correcting boolean, max_drifts integer default 1000,
    out last_key text, out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off set work_mem = '64MB' as $$
declare
    -- Nobody else begins or ends a reconciliation while we are correcting.
    backfilling constant boolean := counter.milestones is not null and pgtally.is_backfilling(counter.counter_id);
begin
    perform pgtally.require_read_committed();
    perform pgtally.lock_measured(counter.counter_id);
    perform pgtally.require_all_rows(counter.name, counter.target_table);
    perform pgtally.require_all_rows(counter.name, s.source_table)
    from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id and against is null;
    if keys is null then
        last_key := pgtally.next_range(counter, after_key, max_keys);
    end if;
    execute format(
        'with measured as materialized (
            select key, source, stored, carried, pending, source - stored - carried - pending as drift from (%s) counts
        ), drifts as (
            select * from measured where drift <> 0
        ) %s
        select (select count(*) from measured), (select count(*) from drifts), (
            select coalesce(jsonb_agg(jsonb_build_object(''key'', key::text, ''source'', source::text, ''stored'', stored::text,
                ''carried'', carried::text, ''pending'', pending::text) order by key), ''[]'')
            from (select * from drifts order by key limit %s) first)',
        pgtally.counts_query(counter, keys, after_key, last_key, against),
        case when correcting
            then format(', corrections as (insert into pgtally.carry_%s (key, delta, events, reached) select key, drift, 1, source - pending from %s)',
                counter.counter_id, case when backfilling then format('measured where drift <> 0 or source - pending >= %s', counter.milestones[1]) else 'drifts' end)
            else '' end,
        coalesce(max_drifts::text, 'all'))
    into checked_keys, drifting_keys, drifting;
end
$$;

-- missing_rights(): the rights on the user's own tables that roles of grant_access() still lack, each as the statement that gives it, to be run by whoever owns the table.
--
-- A worker: what add_deltas() takes on a counter's target. A reader: what get_counts() takes. To audit it takes SELECT on the source as well, which is not listed.
create or replace function pgtally.missing_rights() returns table (role_name name, statement text)
language sql stable set search_path = pg_catalog, pg_temp as $$
    with target as (
        select r.oid as role, r.rolname, a.kind, k.target_table, k.target_key, k.target_column, k.on_missing, n.oid as namespace, n.nspname
        from pgtally.access a
        join pg_roles r on r.rolname = a.role_name
        cross join pgtally.counter k
        join pg_class c on c.oid = k.target_table
        join pg_namespace n on n.oid = c.relnamespace
        where a.kind <> 'writer' and not k.own_target
            -- One that has not got the column any more says so in counter_problems().
            and 2 = (select count(*) from pg_attribute t where t.attrelid = c.oid and t.attname in (k.target_key, k.target_column))
    ), wanted as (
        select t.*, w.privilege, w.columns
        from target t, lateral (values
            ('SELECT', array[t.target_key, t.target_column], true),
            ('UPDATE', array[t.target_column], t.kind = 'worker'),
            ('INSERT', array[t.target_key, t.target_column], t.kind = 'worker' and t.on_missing = 'insert')
        ) w(privilege, columns, needed)
        where w.needed and exists (select from unnest(w.columns) c where not has_column_privilege(t.role, t.target_table, c, w.privilege))
    )
    select distinct t.rolname, format('GRANT USAGE ON SCHEMA %I TO %I', t.nspname, t.rolname)
    from target t where not has_schema_privilege(t.role, t.namespace, 'usage')
    union
    select w.rolname, format('GRANT %s ON %s TO %I', string_agg(distinct format('%s (%s)', w.privilege, (select string_agg(quote_ident(c), ', ') from unnest(w.columns) c)), ', '), w.target_table, w.rolname)
    from wanted w group by w.rolname, w.target_table, w.target_column
    order by 1, 2 desc
$$;

-- next_batch(queue_name, consumer_name, max_events): opens the consumer's next batch and returns its number.
--
-- Returns the same batch until finish_batch() ends it, and NULL when there is no event to be had. Waits for another
-- transaction that is at work for this consumer. max_events: see next_boundary(); NULL for no limit. For several processes, see claim_batch().
--
-- Errors: TL001 when there is no such queue or consumer; TL004, TL005, TL006 as next_boundary(); TL010 when it is a counter, or
-- when its batches are claimed.
create or replace function pgtally.next_batch(queue_name text, consumer_name text, max_events integer default 100000)
returns bigint language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.lock_consumer(queue_name, consumer_name);
    consumer pgtally.consumer;
    position pgtally.batch;
    boundary pg_snapshot;
    found_event boolean;
begin
    -- In statements of their own, after the lock.
    consumer := pgtally.require_reader(queue_name, consumer_name);
    position := pgtally.consumer_position(id);
    select n.boundary into boundary from pgtally.next_boundary(consumer, position.end_boundary, max_events) n;
    if position.finished_at is null and position.claim = 0 then
        return position.batch_id;
    elsif exists (select from pgtally.batch b where b.consumer_id = id and b.finished_at is null) then
        raise exception 'Consumer "%" of queue "%" has a claimed batch', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Use claim_batch(), or a consumer of another name.';
    elsif consumer.paused_at is not null then
        return null;
    end if;
    execute format('select exists (%s)', pgtally.events_query(consumer.queue_id, position.end_boundary, boundary)) into found_event;
    if not found_event then
        return null;
    end if;
    insert into pgtally.batch (consumer_id, start_boundary, end_boundary, batches, events, dropped_events)
    values (id, position.end_boundary, boundary, position.batches + 1, 0, 0)
    returning batch_id into position.batch_id;
    return position.batch_id;
end
$$;

-- next_boundary(consumer, start_boundary, max_events): where the consumer's next batch ends.
--
-- All that has finished by now; where that is more than about max_events, cut at a transaction (cut_txid, cut_boundary), so
-- that a backlog of any size is taken in bounded batches. A transaction is never divided: a batch can be larger than
-- max_events by one transaction's events, and by those of old transactions that have just finished. max_events NULL: uncut.
-- `cut` says whether it was. To be called under the lock of the consumer's row and in a later statement than the lock.
--
-- Errors: TL003 when max_events is below 1; TL004 when the transaction is not READ COMMITTED; TL005 as require_own_cluster(); TL006
-- when time ran backwards, which cannot happen in the cluster that made the boundary.
create or replace function pgtally.next_boundary(
    consumer pgtally.consumer, start_boundary pg_snapshot, max_events integer, out boundary pg_snapshot, out cut boolean
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    later xid8;
begin
    if max_events < 1 then
        raise exception 'max_events is %, and a batch needs at least one', max_events
            using errcode = 'TL003', hint = 'Use 1 or more, or NULL for no limit.';
    end if;
    boundary := pgtally.current_boundary();
    perform pgtally.require_own_cluster(consumer);
    if pg_snapshot_xmax(boundary) < pg_snapshot_xmax(start_boundary)
        or pg_snapshot_xmin(boundary) < pg_snapshot_xmin(start_boundary)
        or exists (
            select from pg_snapshot_xip(boundary) xid
            where xid < pg_snapshot_xmax(start_boundary) and pg_visible_in_snapshot(xid, start_boundary))
    then
        raise exception 'Consumer "%": the boundary % lies before the last one, %', consumer.name, boundary, start_boundary
            using errcode = 'TL006', hint = 'Transaction ids went backwards: was the cluster reset with pg_resetwal?';
    end if;

    if max_events is not null then
        later := pgtally.cut_txid(consumer.queue_id, start_boundary, boundary, max_events);
    end if;
    cut := later < pg_snapshot_xmax(boundary);
    if cut then
        boundary := pgtally.cut_boundary(boundary, later);
    end if;
    cut := coalesce(cut, false);
end
$$;

-- next_range(counter, after_key, max_keys): the last key of a range of about max_keys keys that begins after after_key (NULL: with the
-- first); NULL for all the rest.
--
-- Ranges keep snapshots short and need no sort of a whole table. max_keys keys of the target; or where that may have rows for few
-- of the source's keys (on_missing is not drop), max_keys keys of the source, if that comes first: each is found through the
-- index by the one before. A source whose key has no index would have to be read for each range, so it is one range.
create or replace function pgtally.next_range(counter pgtally.counter, after_key text, max_keys integer) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off set enable_seqscan = off set jit = off as $$
declare
    source constant pgtally.source := (select s from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id);
    space constant record := pgtally.key_space(counter);
    -- The source's own collation may be another one, and the next key in that order lie before after_key in this.
    collation_clause constant text := case when space.key_type = 'text' then format(' collate %s', space.key_collation) else '' end;
    last_key text;
    source_last_key text;
begin
    if max_keys < 1 then
        raise exception 'max_keys is %, and a range needs at least one', max_keys
            using errcode = 'TL003', hint = 'Use 1 or more, or NULL for no limit.';
    end if;
    if max_keys is null or source.queue_id is not null and not pgtally.is_indexed(source.source_table, source.source_key, space.key_collation) then
        return null;
    end if;
    -- t.key and not key, which would be the text.
    execute format('select t.%1$I::text from %2$s t where %3$s order by t.%1$I offset $1 limit 1', counter.target_key, counter.target_table,
        pgtally.key_filter(counter.target_key, space.key_type, space.key_collation, null, after_key, null))
    into last_key using max_keys - 1;
    if source.queue_id is null or counter.on_missing = 'drop' then
        return last_key;
    end if;

    execute format(
        'with recursive found(key, number) as (
            (select %1$I, 1 from %2$s where %3$s order by %1$I%5$s limit 1)
            union all
            select (select s.%1$I from %2$s s where s.%1$I > found.key%5$s and %4$s order by s.%1$I%5$s limit 1), found.number + 1
            from found where found.key is not null and found.number < $1
        )
        select key::text from found where number = $1',
        source.source_key, source.source_table,
        pgtally.key_filter(source.source_key, space.key_type, space.key_collation, null, after_key, last_key)
            || format(' and %I is not null', source.source_key),
        pgtally.key_filter(source.source_key, space.key_type, space.key_collation, null, null, last_key), collation_clause)
    into source_last_key using max_keys;
    return coalesce(source_last_key, last_key);
end
$$;

-- notify_applied(counter, version): tells whoever LISTENs on the channel that is named like the schema: {"counter": "post_likes", "version": "17"}.
--
-- With the commit, for which NOTIFY takes a lock that all notifying transactions of the cluster share.
create or replace function pgtally.notify_applied(counter pgtally.counter, version bigint) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select pg_notify(c.relnamespace::regnamespace::text, json_build_object('counter', counter.name, 'version', version::text)::text)
    from pg_class c where c.oid = 'pgtally.queue'::regclass
$$;

-- oldest_transaction(): when the oldest transaction that this role can see began, prepared ones included; NULL for none.
--
-- pg_stat_activity shows other roles' sessions in full to members of pg_read_all_stats only.
create or replace function pgtally.oldest_transaction() returns timestamptz
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select min(began) from (
        select xact_start as began from pg_stat_activity where pid <> pg_backend_pid()
        union all select prepared from pg_prepared_xacts
    ) transactions
$$;

-- partitions_brought_rows(before, now): whether partitions that have come or gone between these two states of a source had rows in them.
--
-- Of one that has come, the rows older than its attachment: later ones came through the table, whose triggers saw them. (One transaction's are taken
-- for older.) Of one that was dropped, or that the caller may not read, nothing is known, so it counts as one that had.
create or replace function pgtally.partitions_brought_rows(before regclass[], now regclass[]) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    partition record;
    found_row boolean;
begin
    for partition in
        select t.oid, c.relkind, t.oid = any (now) as came
        from (select unnest(before || now)::oid as oid) t left join pg_class c on c.oid = t.oid
        where (t.oid = any (before)) <> (t.oid = any (now))
    loop
        if partition.relkind is null then
            return true;
        elsif partition.relkind = 'r' and not has_table_privilege(partition.oid, 'select') then
            return true;
        elsif partition.relkind = 'r' then
            execute format('select exists (select from only %s %s)', partition.oid::regclass,
                case when partition.came then 'where age(xmin) >= $1' else '' end)
            into found_row
            using (select min(age(i.xmin)) from pg_inherits i where i.inhrelid in (select relid from pg_partition_ancestors(partition.oid)));
            if found_row then
                return true;
            end if;
        end if;
    end loop;
    return false;
end
$$;

-- pause_consumer(queue_name, consumer_name): no batch is given any more; those at work are finished. Events wait.
--
-- Returns whether it was not paused. Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.pause_consumer(queue_name text, consumer_name text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
begin
    update pgtally.consumer c set paused_at = clock_timestamp() where c.consumer_id = consumer.consumer_id and c.paused_at is null;
    return found;
end
$$;

-- pending_query(counter): SQL text of a query for the counter's pending events: those it sees and has not taken yet.
--
-- The counter's position is read by the query itself, so that both come from one snapshot, whichever that is. In the caller's
-- own transaction that includes the events it has emitted and not committed: a boundary lists their id as in progress,
-- or ends below it. Key and delta only: a reader may not see the events' data.
--
-- Errors: TL005 when the position belongs to another cluster.
create or replace function pgtally.pending_query(counter pgtally.counter) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := (select c from pgtally.consumer c where c.consumer_id = counter.counter_id);
    boundary constant text := format('(pgtally.consumer_position(%s)).end_boundary', counter.counter_id);
begin
    perform pgtally.require_own_cluster(consumer);
    return format(
        'select ev_key, ev_delta from pgtally.event_%1$s where ev_txid >= (select pg_catalog.pg_snapshot_xmax(%2$s))
        union all select ev_key, ev_delta from pgtally.event_%1$s where ev_txid = any (array(select pg_catalog.pg_snapshot_xip(%2$s)))',
        consumer.queue_id, boundary);
end
$$;

-- purge_dead_letters(queue_name, consumer_name, ids): removes dead letters for good.
--
-- ids: which ones (failed_event_id); NULL for all. Returns how many.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.purge_dead_letters(queue_name text, consumer_name text, ids bigint[] default null) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp as $$
    with purged as (
        delete from pgtally.failed_event f
        where f.failed_event_id in (select d.failed_event_id from pgtally.dead_letters(queue_name, consumer_name) d) and f.retry_at is null
            and (ids is null or f.failed_event_id = any (ids))
        returning 1
    )
    select count(*) from purged
$$;

-- queue_id(queue_name): the number of a queue, under which its tables are named.
--
-- Errors: TL001 when there is no such queue.
create or replace function pgtally.queue_id(queue_name text) returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := (select q.queue_id from pgtally.queue q where q.name = queue_name);
begin
    if id is null then
        raise exception 'There is no queue "%"', queue_name
            using errcode = 'TL001', hint = 'Make it with create_queue(), or see the names in the table queue.';
    end if;
    return id;
end
$$;

-- queue_status(): one row for each queue: its events, its slots and its consumers.
--
-- slot_bytes: the size of each slot with its index. slot_waits_for: for each slot an array of the consumers that have not finished what is in it. current_slot: the
-- one that is being written. pending_events, lag: of the consumer that is furthest behind, and the age of its oldest pending event.
create or replace function pgtally.queue_status()
returns table (
    name text, key_type text, rotation_period interval, consumers text[], pending_events bigint, lag interval,
    current_slot integer, slot_bytes bigint[], slot_waits_for json
)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    queue record;
    consumer record;
    pending bigint;
    oldest timestamptz;
begin
    for queue in select * from pgtally.queue order by name loop
        name := queue.name;
        key_type := queue.key_type;
        rotation_period := queue.rotation_period;
        consumers := '{}';
        pending_events := 0;
        lag := interval '0';
        current_slot := pgtally.slot_at(clock_timestamp(), queue.rotation_period);
        slot_bytes := array(
            select pg_total_relation_size(format('pgtally.event_%s_%s', queue.queue_id, slot)::regclass)
            from generate_series(0, 2) slot order by slot);
        slot_waits_for := (select json_agg(pgtally.slot_waits_for(queue.queue_id, slot) order by slot) from generate_series(0, 2) slot);
        for consumer in
            select c.name, pgtally.unfinished_since(c.consumer_id) as boundary
            from pgtally.consumer c
            where c.queue_id = queue.queue_id order by c.name
        loop
            consumers := consumers || consumer.name;
            execute format('select count(*), min(ev_time) from (%s) e', pgtally.events_query(queue.queue_id, consumer.boundary, null, 'ev_time'))
            into pending, oldest;
            pending_events := greatest(pending_events, pending);
            lag := greatest(lag, clock_timestamp() - oldest); -- ignores a NULL
        end loop;
        return next;
    end loop;
end
$$;

-- rebase(queue_name): makes the positions of a queue's consumers those of this cluster, after a restore.
--
-- Boundaries and ev_txid of restored events are transaction ids of the old cluster. Between each other they still say which
-- event is pending for which consumer; to compare with those of this cluster, which may be lower, they are of no use. So events get
-- new ids: all that are pending for the same consumers one and the same, out of those below any that this cluster gives to a
-- transaction of pgtally. Each consumer's new boundary is that of now, with the ids of its pending events listed as in progress, so
-- that the next batch takes them. Those pending for nobody get an id that nobody lists; they stay as long as they would have (retain).
--
-- Events that were emitted in this cluster meanwhile are pending for every consumer that was restored. They are told
-- from restored ones by the row's xmin: the index of the whole table became valid when the rows of all slots were there and indexed,
-- before any trigger was made. (That of one slot says nothing about the others: pg_restore may fill those later.)
--
-- Open batches are forgotten; their consumers are given the events again. The new position has the token of the last batch before them: what had been received
-- just up to there goes on, what had received more is told (receive_batch). Writers are not disturbed. Returns the number of events that
-- are pending; NULL when the positions were this cluster's already.
--
-- Errors: TL001 when there is no such queue; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.rebase(queue_name text) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    -- The first that any transaction has, long before pgtally can be there (FirstNormalTransactionId).
    first_id constant integer := 3;
    id constant integer := pgtally.queue_id(queue_name);
    event_table constant text := format('pgtally.event_%s', id);
    own_cluster constant bigint := pgtally.system_identifier();
    restored constant text := format('age(e.xmin) >= (select max(age(i.xmin)) from pg_index i where i.indrelid = %L::regclass)', event_table);
    flags text := quote_literal('');
    boundary pg_snapshot;
    consumer record;
    number integer := 0;
    groups text[];
    pending bigint;
begin
    perform pgtally.require_read_committed();
    if not exists (select from pgtally.consumer c where c.queue_id = id and c.system_identifier <> own_cluster) then
        return null;
    end if;
    -- No batch is taken or finished, no slot emptied, no consumer registered until this ends. The consumers first, as everyone else who
    -- locks both does; then those that were registered while we waited. finish_batch() locks its batch only.
    perform from pgtally.consumer c where c.queue_id = id order by c.consumer_id for update;
    perform from pgtally.queue q where q.queue_id = id for update;
    perform from pgtally.consumer c where c.queue_id = id order by c.consumer_id for update;
    perform from pgtally.batch b join pgtally.consumer c using (consumer_id) where c.queue_id = id for update of b;
    -- Somebody else may have done it meanwhile.
    if not exists (select from pgtally.consumer c where c.queue_id = id and c.system_identifier <> own_cluster) then
        return null;
    end if;
    boundary := pgtally.current_boundary();

    -- For each event a text of one flag for each consumer: whether it is pending for that.
    for consumer in
        select c.system_identifier = own_cluster as own,
            format('not pg_visible_in_snapshot(e.ev_txid, %L)', p.end_boundary) || coalesce((
                select string_agg(format(' or not pg_visible_in_snapshot(e.ev_txid, %L) and pg_visible_in_snapshot(e.ev_txid, %L)', b.start_boundary, b.end_boundary), '')
                from pgtally.batch b where b.consumer_id = c.consumer_id and b.finished_at is null), '') as pending
        from pgtally.consumer c, lateral pgtally.consumer_position(c.consumer_id) p
        where c.queue_id = id order by c.consumer_id
    loop
        flags := flags || format(
            case when consumer.own then ' || (not (%1$s) and (%2$s))::integer'
                else ' || (not (%1$s) or %2$s)::integer' end,
            restored, consumer.pending);
    end loop;
    -- What has not finished at the boundary keeps its id and will be in a batch by that. All else stays the same
    -- from one of these statements to the next.
    execute format(
        'select array_agg(g.flags), sum(g.events) filter (where g.flags like ''%%1%%'')
        from (select %2$s as flags, count(*) as events from %1$s e where %3$s or pg_visible_in_snapshot(e.ev_txid, $1) group by 1) g',
        event_table, flags, restored)
    into groups, pending using boundary;
    execute format(
        'update %1$s e set ev_txid = (array_position($2, %2$s) + %4$s)::text::xid8 where %3$s or pg_visible_in_snapshot(e.ev_txid, $1)',
        event_table, flags, restored, first_id - 1)
    using boundary, groups;

    for consumer in
        select c.consumer_id, p.batches, p.events, p.dropped_events, (
            select b.token from pgtally.batch b
            where b.consumer_id = c.consumer_id and b.finished_at is not null
                and not exists (select from pgtally.batch o where o.consumer_id = c.consumer_id and o.finished_at is null and o.batch_id < b.batch_id)
            order by b.batch_id desc limit 1) as token
        from pgtally.consumer c, lateral pgtally.consumer_position(c.consumer_id) p
        where c.queue_id = id order by c.consumer_id
    loop
        number := number + 1;
        update pgtally.failed_event f set batch_id = null where f.consumer_id = consumer.consumer_id and f.batch_id is not null;
        delete from pgtally.batch b where b.consumer_id = consumer.consumer_id;
        insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events, token)
        select consumer.consumer_id, b.position, b.position, clock_timestamp(), consumer.batches, consumer.events, consumer.dropped_events,
            coalesce(consumer.token, gen_random_uuid())
        from (
            select format('%s:%s:%s', least(pg_snapshot_xmin(boundary), (array_agg(xid order by xid))[1]), pg_snapshot_xmax(boundary),
                string_agg(xid::text, ',' order by xid))::pg_snapshot
            from (
                select pg_snapshot_xip(boundary)
                union select (g.ordinality + first_id - 1)::text::xid8
                from unnest(groups) with ordinality g(flags) where substr(g.flags, number, 1) = '1'
            ) in_progress(xid)
        ) b(position);
    end loop;
    update pgtally.consumer c set system_identifier = own_cluster, last_error = null, last_error_at = null where c.queue_id = id;
    return coalesce(pending, 0);
end
$$;

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

-- received_batch(counter, batch): the row of pgtally.received for a batch of export_batch(), were it received.
create or replace function pgtally.received_batch(counter pgtally.counter, batch jsonb) returns pgtally.received
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    received pgtally.received;
begin
    received.counter_id := counter.counter_id;
    received.source_cluster := batch ->> 'cluster';
    received.source_database := batch ->> 'database';
    received.source_queue := batch ->> 'queue';
    received.source_consumer := batch ->> 'consumer';
    received.position := batch ->> 'token';
    received.batch_id := batch ->> 'number';
    return received;
end
$$;

-- reconcile(counter_name): reconciles the whole counter, and commits after each range of keys.
--
-- For psql, or any client that is not in a transaction: CALL pgtally.reconcile('post_likes'). Goes on where an unfinished one is.
--
-- Errors: as begin_reconciliation() and reconcile_range(); 2D000 in a transaction block.
create or replace procedure pgtally.reconcile(counter_name text)
-- No SET search_path, with which it could not commit; so all names are written out.
language plpgsql as $$
declare
    id pg_catalog.int8;
    last_key pg_catalog.text;
begin
    id := pgtally.begin_reconciliation(counter_name);
    loop
        commit;
        select r.last_key into last_key from pgtally.reconcile_range(id) r;
        exit when last_key is null;
    end loop;
end
$$;

-- reconcile_keys(counter_name, keys): compares and corrects these keys. An unfinished reconciliation stays where it is.
--
-- checked_keys, drifting_keys, drifting: see measure(); each of the drifting keys was corrected.
--
-- Errors: as audit_keys().
create or replace function pgtally.reconcile_keys(
    counter_name text, keys text[],
    out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
begin
    perform pgtally.require_source_rows(counter, true);
    select m.checked_keys, m.drifting_keys, m.drifting into checked_keys, drifting_keys, drifting from pgtally.measure(counter, coalesce(keys, '{}'), null, null, null, true) m;
end
$$;

-- reconcile_range(reconciliation_id, max_keys): compares and corrects the next keys of a reconciliation, about max_keys of them.
--
-- Correction and progress are one transaction: after a crash all finished ranges are right, all others as before, and it goes on where it was. Any
-- number of processes may call it at once. Writers and workers go on meanwhile.
--
-- last_key: how far it is now; NULL when it has ended, be it by this call or another. checked_keys, drifting_keys, drifting: see
-- measure(); each of the drifting keys was corrected. Where it has ended, audit_status() says what it has found in all.
--
-- Errors: as audit_range().
create or replace function pgtally.reconcile_range(
    reconciliation_id bigint, max_keys integer default 10000,
    out last_key text, out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter pgtally.counter;
    reconciliation pgtally.reconciliation;
begin
    checked_keys := 0;
    drifting_keys := 0;
    drifting := '[]';
    select k.* into counter from pgtally.reconciliation r join pgtally.counter k using (counter_id)
    where r.reconciliation_id = reconcile_range.reconciliation_id;
    if not found then
        return;
    end if;
    counter := pgtally.lock_corrections(counter.name);
    -- As it is now that the lock is ours.
    select * into reconciliation from pgtally.reconciliation r where r.reconciliation_id = reconcile_range.reconciliation_id;
    if not found then
        return;
    end if;
    select m.* into last_key, checked_keys, drifting_keys, drifting
    from pgtally.measure(counter, null, reconciliation.after_key, max_keys, null, true) m;
    if last_key is null then
        delete from pgtally.reconciliation r where r.reconciliation_id = reconcile_range.reconciliation_id;
        -- What a backfill finds is no drift.
        if reconciliation.reason <> 'backfill' then
            perform pgtally.record_audit(counter.name, true, reconciliation.checked_keys + reconcile_range.checked_keys,
                reconciliation.drifting_keys + reconcile_range.drifting_keys, true);
        end if;
    else
        update pgtally.reconciliation r
        set after_key = reconcile_range.last_key, checked_keys = r.checked_keys + reconcile_range.checked_keys, drifting_keys = r.drifting_keys + reconcile_range.drifting_keys
        where r.reconciliation_id = reconcile_range.reconciliation_id;
    end if;
end
$$;

-- record_audit(counter_name, complete, checked_keys, drifting_keys, corrected): keeps what an audit has found, for audit_status().
--
-- complete: it was of all keys; else of a sample, which is kept beside it. For audits that were made of several calls (audit_range, audit_keys), by who made them.
-- Returns whether it was kept: not where the role may not write it, or the transaction or server is read-only, so that those can audit as well.
--
-- Errors: TL001 when there is no such counter.
create or replace function pgtally.record_audit(counter_name text, complete boolean, checked_keys bigint, drifting_keys bigint, corrected boolean default false) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    last_audit constant regclass := 'pgtally.last_audit';
begin
    if current_setting('transaction_read_only')::boolean or not (has_table_privilege(last_audit, 'insert') and has_table_privilege(last_audit, 'update')) then
        return false;
    end if;
    insert into pgtally.last_audit as a (counter_id, complete, checked_keys, drifting_keys, corrected)
    values (counter.counter_id, record_audit.complete, record_audit.checked_keys, record_audit.drifting_keys, record_audit.corrected)
    on conflict (counter_id, complete) do update
    set audited_at = excluded.audited_at, checked_keys = excluded.checked_keys, drifting_keys = excluded.drifting_keys, corrected = excluded.corrected;
    return true;
end
$$;

-- record_consumer_error(queue_name, consumer_name, message): keeps why a consumer could not go on, for consumer_status(); NULL when it goes on.
create or replace function pgtally.record_consumer_error(queue_name text, consumer_name text, message text) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    update pgtally.consumer c set last_error = message, last_error_at = case when message is not null then clock_timestamp() end
    from pgtally.queue q
    where q.queue_id = c.queue_id and q.name = queue_name and c.name = consumer_name
$$;

-- record_error(counter_name, message): keeps why a counter could not go on, for counter_status(), until a batch succeeds.
create or replace function pgtally.record_error(counter_name text, message text) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    update pgtally.consumer c set last_error = message, last_error_at = clock_timestamp()
    from pgtally.counter k
    where k.name = counter_name and c.consumer_id = k.counter_id
$$;

-- record_milestones(counter, keys, deltas, counts, reached_keys, reached, silent): records the thresholds that add_deltas() has carried these keys over, and hands on
-- those that are new as events of the queue <counter>.milestones: key, delta 1, data {"threshold": n, "value": m}.
--
-- keys, deltas, counts: what was added to which stored count, and what it has become. reached_keys, reached: what corrections say that a key had reached
-- without us (measure), or NULL; up to there nothing is handed on. silent: neither is anything else.
--
-- Each threshold of a key is recorded once for ever, and is handed on by the transaction that records it or never. The caller has locked the keys' rows of the target,
-- so no other transaction is recording anything for them, and the unique index never makes us wait.
--
-- The number of thresholds at or below a value is width_bucket(value, milestones), so those from one value to another are a slice.
create or replace function pgtally.record_milestones(
    counter pgtally.counter, keys anyarray, deltas bigint[], counts bigint[], reached_keys anyarray, reached bigint[], silent boolean
) returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    queue constant pgtally.queue := (select q from pgtally.queue q where q.name = counter.name || '.milestones');
begin
    insert into pgtally.milestone (counter_id, key, threshold, value)
    select counter.counter_id, u.key::text, threshold, u.value
    from unnest(reached_keys, reached) u(key, value), unnest(counter.milestones[:width_bucket(u.value, counter.milestones)]) threshold
    where u.value >= counter.milestones[1]
    on conflict do nothing;

    -- A statement for all, as most batches carry no key over anything.
    execute format(
        'with crossed as (
            insert into pgtally.milestone (counter_id, key, threshold, value)
            select $1, u.key::text, threshold, u.value
            from unnest($2, $3, $4) u(key, delta, value),
                unnest($5[width_bucket(u.value - u.delta, $5) + 1 : width_bucket(u.value, $5)]) threshold
            where u.delta > 0
            on conflict do nothing
            returning key, threshold, value
        )
        insert into pgtally.event_%s (ev_key, ev_delta, ev_data)
        select key::%s, 1, jsonb_build_object(''threshold'', threshold, ''value'', value) from crossed where not $6',
        queue.queue_id, queue.key_type)
    using counter.counter_id, keys, deltas, counts, counter.milestones, silent;
end
$$;

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

-- release_batch(batch_id, claim, retry_in, reason, max_attempts): gives back a claimed batch that could not be handled.
--
-- It is given again after that time, to whoever comes. A batch of failed events is ended: these are given again one by one, and one that was alone has failed once
-- more; having failed max_attempts times it becomes a dead letter.
--
-- Errors: TL011 as lock_batch().
create or replace function pgtally.release_batch(batch_id bigint, claim integer, retry_in interval, reason text, max_attempts integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    failed constant bigint[] := array(select f.failed_event_id from pgtally.failed_event f where f.batch_id = batch_id);
begin
    perform pgtally.renew_claim(batch_id, claim, retry_in);
    if cardinality(failed) = 0 then
        return;
    elsif cardinality(failed) > 1 then
        update pgtally.failed_event f set alone = true, batch_id = null where f.failed_event_id = any (failed);
    else
        update pgtally.failed_event f
        set attempts = f.attempts + 1, reason = release_batch.reason, failed_at = clock_timestamp(), batch_id = null,
            retry_at = case when f.attempts + 1 < max_attempts then clock_timestamp() + retry_in end
        where f.failed_event_id = any (failed);
    end if;
    perform pgtally.finish_batch(batch_id, claim);
end
$$;

-- renew_access(relations): takes from PUBLIC whatever it has, and gives the roles of grant_access() their rights on these tables and views of pgtally, or,
-- where that is NULL, on everything; the one place that says what each kind may. Called wherever something is made: by create_queue(), create_counter() and an upgrade.
--
-- Most functions run with their caller's rights: EXECUTE alone lets nobody do what his rights on tables do not. So a reader may call all that is STABLE, and a worker all but
-- what is the owner's. Those that run with their owner's rights are granted one by one.
create or replace function pgtally.renew_access(relations regclass[] default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    -- Which may call which of the functions that run with their owner's rights, or (a reader) are VOLATILE.
    for_writers constant name[] := array['add_event', 'add_events', 'insert_event', 'is_stored'];
    for_readers constant name[] := array['audit', 'audit_keys', 'audit_range', 'is_stored', 'lock_measured', 'measure', 'oldest_transaction', 'record_audit', 'require_read_committed', 'sample_keys', 'sum_delta'];
    for_workers constant name[] := for_readers || array['receive_batch', 'rotate', 'sync_triggers']::name[];
    -- They define, correct or throw away. Without the rights on tables they would fail anyway; so they say it at once.
    for_owners constant name[] := array['accept_batch', 'begin_reconciliation', 'create_counter', 'create_queue', 'create_source', 'drop_counter', 'drop_queue', 'drop_source', 'grant_access',
        'lock_corrections', 'rebase', 'reconcile', 'reconcile_keys', 'reconcile_range', 'renew_access', 'reset_keys', 'reset_range', 'revoke_access', 'source_expression', 'unregister_consumer'];
    schema constant regnamespace := (select relnamespace from pg_class where oid = 'pgtally.access'::regclass);
    given record;
begin
    if relations is null then
        lock table pgtally.access in share row exclusive mode;
        -- A function may be called by everyone unless that is taken back, and the database may have default privileges; triggers need no right on their functions.
        execute format('revoke all on schema %1$s from public; revoke all on all tables in schema %1$s from public; revoke all on all routines in schema %1$s from public', schema);
    else
        for given in select relation from unnest(relations) relation loop
            execute format('revoke all on %s from public', given.relation);
        end loop;
        -- Not while roles are being granted, but beside others who make something.
        lock table pgtally.access in row exclusive mode;
    end if;
    for given in
        with role as (
            select r.rolname, a.kind
            from pgtally.access a join pg_roles r on r.rolname = a.role_name
            where exists (
                select from pg_namespace n, aclexplode(n.nspacl) acl
                where n.oid = schema and acl.grantee = r.oid and acl.privilege_type = 'USAGE')
        ), relation as (
            -- event_1, carry_1 … are all of one sort; slots are the partitions of the first.
            select c.oid::regclass as relation, case when c.relispartition then 'slot' else regexp_replace(c.relname, '_\d+$', '_N') end as sort
            from pg_class c
            where c.relnamespace = schema and c.relkind in ('r', 'p', 'v')
                and (relations is null or c.oid = any (relations::oid[]))
        ), granted(kind, sort, rights) as (
            values
                -- Not the events' data.
                ('reader', 'event_N', 'select (ev_txid, ev_time, ev_key, ev_delta, ev_slot)'),
                ('worker', 'slot', 'select'),
                -- Of milestones.
                ('worker', 'event_N', 'insert (ev_key, ev_delta, ev_data)'),
                ('worker', 'batch', 'insert, update, delete'),
                ('worker', 'failed_event', 'insert, update, delete'),
                ('worker', 'milestone', 'insert'),
                ('worker', 'last_audit', 'insert, update, delete'),
                ('worker', 'consumer', 'insert (queue_id, name, system_identifier), update (paused_at, last_error, last_error_at)'),
                -- To lock a row takes UPDATE on some column; no other may be changed.
                ('worker', 'queue', 'update (created_at)'),
                ('worker', 'carry_N', 'insert, delete'),
                ('worker', 'packed_N', 'insert, delete'),
                ('worker', 'count_N', 'insert, update')
        )
        select format('grant %s on %s to %I', g.rights, t.relation, r.rolname) as statement
        from role r join granted g using (kind) join relation t using (sort)
        union all
        select format('grant select on %s to %I', t.relation, r.rolname)
        from role r, relation t
        where r.kind in ('reader', 'worker') and t.sort <> 'slot' and (r.kind = 'worker' or t.sort <> 'event_N')
        union all
        select format('grant execute on routine %s to %I', p.oid::regprocedure, r.rolname)
        from role r, pg_proc p
        where relations is null and p.pronamespace = schema
            and p.proname !~ '^(source|insert_event)_\d' and case r.kind
                when 'writer' then p.proname = any (for_writers)
                when 'reader' then p.proname = any (for_readers) or p.provolatile <> 'v' and not p.prosecdef
                else p.proname = any (for_workers) or not p.prosecdef and p.proname <> all (for_owners)
            end
    loop
        execute given.statement;
    end loop;
end
$$;

-- renew_claim(batch_id, claim, lease): the claim ends so long from now.
--
-- Errors: TL011 as lock_batch().
create or replace function pgtally.renew_claim(batch_id bigint, claim integer, lease interval) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    perform pgtally.lock_batch(batch_id, claim);
    update pgtally.batch b set claimed_until = clock_timestamp() + lease where b.batch_id = renew_claim.batch_id;
end
$$;

-- replay_dead_letters(queue_name, consumer_name, ids): gives dead letters to the consumer again, as if they had never failed.
--
-- ids: which ones (failed_event_id); NULL for all. Returns how many.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.replay_dead_letters(queue_name text, consumer_name text, ids bigint[] default null) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp as $$
    with replayed as (
        update pgtally.failed_event f set retry_at = clock_timestamp(), attempts = 0
        where f.failed_event_id in (select d.failed_event_id from pgtally.dead_letters(queue_name, consumer_name) d) and f.retry_at is null
            and (ids is null or f.failed_event_id = any (ids))
        returning 1
    )
    select count(*) from replayed
$$;

-- require_against(counter, against): raises unless the counts can be held against that column of the target, or, where it is NULL, against the
-- source.
--
-- Errors: TL003 when the target has no such column or it is no whole number; TL009 when there is no source.
create or replace function pgtally.require_against(counter pgtally.counter, against name) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if against is null then
        perform pgtally.require_source_rows(counter, true);
    elsif not exists (
        select from pg_attribute a
        where a.attrelid = counter.target_table and a.attname = against and a.attnum > 0 and not a.attisdropped
            and a.atttypid in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype)
    ) then
        raise exception 'Counter "%": % has no column "%" that holds a number', counter.name, counter.target_table, against
            using errcode = 'TL003', hint = 'Name the column of the target that the counts are to be held against.';
    end if;
end
$$;

-- require_all_rows(counter_name, relation): raises TL003 where row-level security hides rows of the table from the current role, so that it cannot count them.
--
-- The server would refuse the statement by itself (row_security = off), without saying what to do.
create or replace function pgtally.require_all_rows(counter_name text, relation regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if row_security_active(relation) then
        raise exception 'Counter "%": row-level security hides rows of % from the role "%"', counter_name, relation, current_user
            using errcode = 'TL003', hint = format('Give the role BYPASSRLS, or let it own the table without FORCE ROW LEVEL SECURITY: ALTER ROLE %I BYPASSRLS.', current_user);
    end if;
end
$$;

-- require_counter(counter_name): the counter of that name.
--
-- Errors: TL001 when there is none.
create or replace function pgtally.require_counter(counter_name text) returns pgtally.counter
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    counter pgtally.counter;
begin
    select * into counter from pgtally.counter k where k.name = counter_name;
    if not found then
        raise exception 'There is no counter "%"', counter_name
            using errcode = 'TL001', hint = 'Make it with create_counter(), or see the names in counter_status().';
    end if;
    return counter;
end
$$;

-- require_data_columns(counter_name, source, columns): makes sure that the source has these columns.
--
-- Errors: TL003 when it has not, when one is given twice, or none.
create or replace function pgtally.require_data_columns(counter_name text, source regclass, columns name[]) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    missing constant name := (
        select c from unnest(columns) c
        where not exists (select from pg_attribute a where a.attrelid = source and a.attname = c and a.attnum > 0 and not a.attisdropped) limit 1);
begin
    if missing is not null then
        raise exception 'Counter "%": % has no column "%"', counter_name, source, missing
            using errcode = 'TL003', hint = 'Name columns of the source.';
    elsif cardinality(columns) = 0 or cardinality(columns) > (select count(distinct c) from unnest(columns) c) then
        raise exception 'Counter "%": the columns for data are none, or one of them is given twice', counter_name
            using errcode = 'TL003', hint = 'Name each column once, or leave them out.';
    end if;
end
$$;

-- require_key_column(counter_name, relation, key): the queue's key type for a key column: smallint, integer, bigint, uuid or text.
--
-- Errors: TL003 when there is no such column or its type cannot be a key.
create or replace function pgtally.require_key_column(counter_name text, relation regclass, key name) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    key_type text;
    virtual boolean;
begin
    select case a.atttypid::regtype::text when 'character varying' then 'text' else a.atttypid::regtype::text end, a.attgenerated = 'v'
    into key_type, virtual
    from pg_attribute a where a.attrelid = relation and a.attname = key and a.attnum > 0 and not a.attisdropped;
    if key_type is null then
        raise exception 'Counter "%": the table % has no column "%"', counter_name, relation, key
            using errcode = 'TL003', hint = 'Name the column that holds the key.';
    elsif key_type not in ('smallint', 'integer', 'bigint', 'uuid', 'text') then
        raise exception 'Counter "%": the column %.% is of type %, which cannot be a key', counter_name, relation, key, key_type
            using errcode = 'TL003', hint = 'Use a column of type smallint, integer, bigint, uuid, text or varchar.';
    end if;
    if virtual then
        -- PostgreSQL 18 does not compute them for the rows that a trigger sees.
        raise exception 'Counter "%": the column %.% is a virtual generated column, which cannot be a key', counter_name, relation, key
            using errcode = 'TL003', hint = 'Make it STORED, or use the column that it is computed from.';
    end if;
    return key_type;
end
$$;

-- require_own_cluster(consumer): raises TL005 when the consumer's position was stored in another database cluster, or that of another consumer
-- of its queue, whose events are there, too.
create or replace function pgtally.require_own_cluster(consumer pgtally.consumer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    own_cluster constant bigint := pgtally.system_identifier();
begin
    if exists (select from pgtally.consumer c where c.queue_id = consumer.queue_id and c.system_identifier <> own_cluster) then
        raise exception 'Consumer "%": a position in its queue was stored in another database cluster', consumer.name
            using errcode = 'TL005', hint = 'The database was restored, upgraded or replicated into this cluster, where '
                'transaction ids start elsewhere. Nothing was applied and the events are kept. Run: pgtally rebase';
    end if;
end
$$;

-- require_owner(): raises 42501 unless the current role is the one that pgtally belongs to. What a superuser or a member of that role made would be his own: functions that run with their
-- owner's rights could not use it, or would have more rights than meant.
create or replace function pgtally.require_owner() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'pgtally.queue'::regclass);
begin
    if owner <> current_user then
        raise exception 'pgtally belongs to the role "%", which alone defines counters and queues (SET ROLE %)', owner, quote_ident(owner)
            using errcode = 'insufficient_privilege';
    end if;
end
$$;

-- require_read_committed(): raises TL004 unless every statement of this transaction has a snapshot of its own.
create or replace function pgtally.require_read_committed() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception 'pgtally cannot do this in a transaction that is %', upper(current_setting('transaction_isolation'))
            using errcode = 'TL004', hint = 'Use a transaction that is READ COMMITTED: BEGIN ISOLATION LEVEL READ COMMITTED.';
    end if;
end
$$;

-- require_reader(queue_name, consumer_name): a consumer that is not a counter, unlocked.
--
-- Errors: TL001 when there is no such queue or consumer; TL010 when it is a counter.
create or replace function pgtally.require_reader(queue_name text, consumer_name text) returns pgtally.consumer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    queue constant integer := pgtally.queue_id(queue_name);
    consumer pgtally.consumer;
begin
    select * into consumer from pgtally.consumer c where c.queue_id = queue and c.name = consumer_name;
    if not found then
        raise exception 'Queue "%" has no consumer "%"', queue_name, consumer_name
            using errcode = 'TL001', hint = 'Make it with register_consumer().';
    elsif exists (select from pgtally.counter k where k.counter_id = consumer.consumer_id) then
        raise exception 'Consumer "%" of queue "%" is a counter', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Register a consumer of another name.';
    end if;
    return consumer;
end
$$;

-- require_source(counter_name, source): raises TL003 unless the rows of the table can be counted exactly.
create or replace function pgtally.require_source(counter_name text, source regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    objection text;
begin
    select case
        when c.relkind not in ('r', 'p') then 'is not a table'
        when c.relpersistence = 't' then 'is temporary, so other sessions do not see its rows'
        when c.relpersistence = 'u' then 'is unlogged: a crash would empty it and leave the counts'
        when c.relispartition then 'is a partition; statements on the table it belongs to would not be seen'
        when exists (select from pg_inherits where inhrelid = c.oid) then 'inherits from another table; statements on that would not be seen'
        when c.relkind = 'r' and exists (select from pg_inherits where inhparent = c.oid) then 'has inheritance children'
        when exists (
            select from pg_partition_tree(c.oid) p join pg_class f on f.oid = p.relid where f.relkind = 'f'
        ) then 'has partitions that are foreign tables'
    end into objection
    from pg_class c where c.oid = source;
    if objection is not null then
        raise exception 'Counter "%": the rows of % cannot be counted: it %', counter_name, source, objection
            using errcode = 'TL003', hint = 'The source is an ordinary or partitioned table of this database.';
    end if;
end
$$;

-- require_source_rows(counter, wanted): raises TL009 unless the counter counts the rows of a source (wanted), or does not (not wanted).
create or replace function pgtally.require_source_rows(counter pgtally.counter, wanted boolean) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    source constant regclass := (
        select s.source_table from pgtally.source s join pgtally.consumer c using (queue_id) where c.consumer_id = counter.counter_id);
begin
    if wanted and source is null then
        raise exception 'Counter "%" adds up events and not rows, so there is nothing to hold its counts against', counter.name
            using errcode = 'TL009', hint = 'Its counts can be set back to 0 with reset.';
    elsif not wanted and source is not null then
        raise exception 'Counter "%" counts the rows of %, so its counts cannot be set back to 0', counter.name, source
            using errcode = 'TL009', hint = 'Delete the rows; or if counts are wrong, correct them with reconcile.';
    end if;
end
$$;

-- require_table(counter_name, role, relation): raises TL003 when a counter's table was dropped; role says which it is: source or target.
create or replace function pgtally.require_table(counter_name text, role text, relation oid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from pg_class where oid = relation) then
        raise exception 'Counter "%": its % table was dropped', counter_name, role
            using errcode = 'TL003', hint = 'Drop the counter, too; if there is a new table, create the counter again for that.';
    end if;
end
$$;

-- require_target(counter_name, target, target_key, target_column): raises TL003 unless counts can be kept there.
create or replace function pgtally.require_target(counter_name text, target regclass, target_key name, target_column name)
returns void language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    found_column record;
begin
    if (select relkind not in ('r', 'p') or relpersistence <> 'p' from pg_class where oid = target) then
        raise exception 'Counter "%": counts cannot be kept in %: it is not a permanent, logged table', counter_name, target
            using errcode = 'TL003', hint = 'Use an ordinary or partitioned table, or leave the target out to use pgtally''s own.';
    end if;
    select a.atttypid::regtype as type, a.attgenerated <> '' or a.attidentity <> '' as generated into found_column
    from pg_attribute a where a.attrelid = target and a.attname = target_column and a.attnum > 0 and not a.attisdropped;
    if not found then
        raise exception 'Counter "%": the table % has no column "%"', counter_name, target, target_column
            using errcode = 'TL003', hint = format('Add it: ALTER TABLE %s ADD COLUMN %I bigint NOT NULL DEFAULT 0.', target, target_column);
    elsif found_column.generated or found_column.type not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype) then
        raise exception 'Counter "%": the column %.% is %, not a number that can be added to', counter_name, target, target_column,
            case when found_column.generated then 'generated' else 'of type ' || found_column.type::text end
            using errcode = 'TL003', hint = 'Use a column of type bigint, or of integer, smallint or numeric.';
    end if;
    if target_key = target_column then
        raise exception 'Counter "%": the column %.% cannot hold both the key and the count', counter_name, target, target_key
            using errcode = 'TL003', hint = format('Add one for the count: ALTER TABLE %s ADD COLUMN like_count bigint NOT NULL DEFAULT 0.', target);
    end if;
    if not pgtally.is_unique_key(target, target_key) then
        raise exception 'Counter "%": %.% has no unique index, so a key could mean several rows', counter_name, target, target_key
            using errcode = 'TL003', hint = format('Add one: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%I).', target, target_key);
    end if;
end
$$;

-- require_young_snapshot(queue_id): raises TL004 when a slot was emptied which may have been pending in the snapshot that is in use.
--
-- To be called when the slots have been read: from then on they are locked, so nobody empties them. rotate() empties what was consumed a minute
-- ago (or a rotation period, where that is shorter), and TRUNCATE does not respect older snapshots. That may happen to a REPEATABLE READ
-- or SERIALIZABLE transaction which has not read the slots when it was younger, to a cursor, and to a single statement that comes to it late. On a standby it may
-- happen to anyone at any age, as a minute of the primary is replayed in a moment when it catches up.
--
-- TRUNCATE gives a slot a new file. pg_relation_filenode() knows that at once; pg_class says so in younger snapshots only.
create or replace function pgtally.require_young_snapshot(queue_id integer) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    queue constant pgtally.queue := (select q from pgtally.queue q where q.queue_id = $1);
begin
    if (pg_is_in_recovery() or clock_timestamp() - transaction_timestamp() > 0.9 * least(interval '1 minute', queue.rotation_period))
        and exists (
            select from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = format('pgtally.event_%s', $1)::regclass and c.relfilenode <> pg_relation_filenode(c.oid))
    then
        raise exception 'Queue "%": the snapshot of this % transaction is too old for a fresh count', queue.name, upper(current_setting('transaction_isolation'))
            using errcode = 'TL004', hint = 'Events that it still counts as pending are gone. Read the count '
                'within its first minute (or rotation period), or in a READ COMMITTED transaction. On a standby, read it again in another transaction.';
    end if;
end
$$;

-- reset_keys(counter_name, keys): as reset_range() for these keys. Returns how many were not 0.
--
-- Errors: as reset_range(); 22P02 when a key is not of the queue's type.
create or replace function pgtally.reset_keys(counter_name text, keys text[]) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
begin
    perform pgtally.require_source_rows(counter, false);
    return (select m.drifting_keys from pgtally.measure(counter, coalesce(keys, '{}'), null, null, null, true) m);
end
$$;

-- reset_range(counter_name, after_key, max_keys): sets the counts of about max_keys keys back to 0, for a counter without a source.
--
-- What is stored, carried and pending in one snapshot is taken back by a delta of that size; what is added later counts. Goes through
-- the keys in order, as audit_range(). last_key is where the next call begins, and NULL at the end.
--
-- Errors: TL001 when there is no such counter; TL004, TL005 as measure(); TL009 when it has a source.
create or replace function pgtally.reset_range(
    counter_name text, after_key text default null, max_keys integer default 10000,
    out last_key text, out checked_keys bigint, out drifting_keys bigint
) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.lock_corrections(counter_name);
begin
    perform pgtally.require_source_rows(counter, false);
    select m.last_key, m.checked_keys, m.drifting_keys into last_key, checked_keys, drifting_keys
    from pgtally.measure(counter, null, after_key, max_keys, null, true) m;
end
$$;

-- resume_consumer(queue_name, consumer_name): batches are given again.
--
-- Returns whether it was paused. Errors: as pause_consumer().
create or replace function pgtally.resume_consumer(queue_name text, consumer_name text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    consumer constant pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
begin
    update pgtally.consumer c set paused_at = null where c.consumer_id = consumer.consumer_id and c.paused_at is not null;
    return found;
end
$$;

-- revoke_access(writers, readers, workers): takes back what grant_access() has given.
--
-- All rights of these roles on pgtally go, also those given by hand; what they were granted as another kind stays. Roles that do not exist (any more) are forgotten.
create or replace function pgtally.revoke_access(writers text[] default '{}', readers text[] default '{}', workers text[] default '{}') returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    schema constant regnamespace := (select relnamespace from pg_class where oid = 'pgtally.access'::regclass);
    role name;
begin
    lock table pgtally.access in share row exclusive mode;
    delete from pgtally.access a
    where (a.role_name = any (writers) and a.kind = 'writer') or (a.role_name = any (readers) and a.kind = 'reader') or (a.role_name = any (workers) and a.kind = 'worker');
    for role in select r.rolname from pg_roles r where r.rolname = any (writers || readers || workers) loop
        execute format(
            'revoke all on all tables in schema %1$s from %2$I; revoke all on all sequences in schema %1$s from %2$I; revoke all on all routines in schema %1$s from %2$I',
            schema, role);
        if not exists (select from pgtally.access a where a.role_name = role) then
            execute format('revoke all on schema %s from %I', schema, role);
        end if;
    end loop;
    perform pgtally.renew_access();
end
$$;

-- rotate(queue_name): empties the queue's slots that are done with, and forgets its consumers' old batches.
--
-- May be called at any time, as often as wanted, also by several at once; workers do it all the time. Nothing
-- depends on when, or on every call succeeding: what cannot be emptied now is emptied later. Returns how many slots
-- were emptied.
--
-- Why no event is lost, however late it was written. A slot's lock is taken first, without waiting; the decision is made
-- by a later statement. A transaction that has written to the slot and not ended yet holds the slot's lock, so we give up;
-- one that has ended is seen by that statement, and its events must lie behind every boundary; one that comes
-- later finds an empty table. A consumer that is just being registered holds FOR KEY SHARE on the queue's row.
--
-- Where events are to be kept (retain), only the slot that is written next is emptied: it has not been written for one to two periods.
--
-- Runs with its owner's rights: EXECUTE on it is all that a worker needs.
--
-- Errors: TL001 when there is no such queue; TL004 when the transaction is not READ COMMITTED.
create or replace function pgtally.rotate(queue_name text) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.queue_id(queue_name);
    emptied integer := 0;
    stale boolean;
    slot integer;
begin
    perform pgtally.require_read_committed();
    -- Read first, and change only what needs it: a call with nothing to do assigns no transaction id.
    select exists (
        select from pgtally.consumer c, lateral pgtally.settled_batch(c.consumer_id) s
        where c.queue_id = id and exists (select from pgtally.batch b where b.consumer_id = c.consumer_id and b.batch_id < s.batch_id)
    ) into stale;
    if stale then
        -- seek() and others that delete them may take their time to commit.
        delete from pgtally.batch b where b.batch_id in (
            select o.batch_id from pgtally.consumer c, lateral pgtally.settled_batch(c.consumer_id) s, pgtally.batch o
            where c.queue_id = id and o.consumer_id = c.consumer_id and o.batch_id < s.batch_id
            for update of o skip locked
        );
    end if;

    for slot in
        select s from generate_series(0, 2) s, pgtally.queue q,
            lateral pgtally.slot_at(clock_timestamp(), q.rotation_period) current_slot
        where q.queue_id = id and s <> current_slot and (q.retain = interval '0' or s = mod(current_slot + 1, 3))
            and pg_relation_size(format('pgtally.event_%s_%s', id, s)::regclass) > 0
            and pgtally.slot_is_consumed(id, s)
    loop
        begin
            perform from pgtally.queue q where q.queue_id = id for update nowait;
            execute format('lock table pgtally.event_%s_%s in access exclusive mode nowait', id, slot);
            -- Someone else may have emptied it meanwhile.
            if pg_relation_size(format('pgtally.event_%s_%s', id, slot)::regclass) > 0 and pgtally.slot_is_consumed(id, slot) then
                execute format('truncate pgtally.event_%s_%s', id, slot);
                emptied := emptied + 1;
            else
                raise lock_not_available; -- gives the locks back
            end if;
        exception when lock_not_available then
            null;
        end;
    end loop;
    return emptied;
end
$$;

-- sample_keys(counter_name, sample_size): that many keys of the target, taken at random; fewer where it has no more.
--
-- Reads a few random pages and not the whole table, so keys that lie together are rather taken together.
--
-- Errors: TL001 when there is no such counter; TL003 when sample_size is below 1.
create or replace function pgtally.sample_keys(counter_name text, sample_size integer) returns text[]
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    row_count constant bigint := pgtally.estimated_keys(counter);
    sampled text[];
begin
    if sample_size < 1 then
        raise exception 'The sample is of % keys, and needs at least one', sample_size
            using errcode = 'TL003', hint = 'Use 1 or more.';
    end if;
    execute format(
        'select array(select %1$I::text from %2$s tablesample system (%3$s) where %1$I is not null order by random() limit $1)',
        counter.target_key, counter.target_table,
        -- A few times as many as needed, since the statistics may be old.
        coalesce(least(100, 100.0 * 5 * (sample_size + 200) / row_count), 100))
    into sampled using sample_size;
    return sampled;
end
$$;

-- seek(queue_name, consumer_name, since): sets a consumer back, so that it is given again what was emitted since then, as far as it is
-- still there.
--
-- Events are kept for the queue's `retain` at least. Whole transactions are given again: those with an event since then, and all that were given
-- a later number. An open batch is forgotten. Returns the number of events that the consumer has before it now. Never moves
-- a consumer on.
--
-- Errors: TL001 when there is no such queue or consumer; TL004 when the transaction is not READ COMMITTED; TL005 as require_own_cluster();
-- TL010 when it is a counter, which would count them twice.
create or replace function pgtally.seek(queue_name text, consumer_name text, since timestamptz) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.lock_consumer(queue_name, consumer_name);
    consumer pgtally.consumer;
    position pgtally.batch;
    boundary pg_snapshot;
    first_txid xid8;
    before_it bigint;
begin
    perform pgtally.require_read_committed();
    -- rotate() locks it FOR UPDATE: until this ends, no slot is emptied.
    perform from pgtally.queue q where q.name = queue_name for key share;
    if exists (select from pgtally.counter k where k.counter_id = id) then
        raise exception 'Consumer "%" of queue "%" is a counter, which would count events twice', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Register a consumer of another name.';
    end if;
    -- finish_batch() does not lock the consumer.
    perform from pgtally.batch b where b.consumer_id = id for update;
    select c.* into consumer from pgtally.consumer c where c.consumer_id = id;
    perform pgtally.require_own_cluster(consumer);
    position := pgtally.consumer_position(id);
    boundary := pgtally.unfinished_since(id);
    execute format('select ev_txid from pgtally.event_%s where ev_time >= $1 order by ev_txid limit 1', consumer.queue_id) into first_txid using since;
    if first_txid < pg_snapshot_xmax(boundary) then
        boundary := pgtally.cut_boundary(boundary, first_txid);
    end if;
    update pgtally.failed_event f set batch_id = null where f.consumer_id = id and f.batch_id is not null;
    -- With none of the old rows: rotate() would take a later one for settled.
    delete from pgtally.batch b where b.consumer_id = id;
    insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
    values (id, boundary, boundary, clock_timestamp(), position.batches, 0, 0);
    execute format('select count(*) from (%s) e', pgtally.events_query(consumer.queue_id, boundary, null)) into before_it;
    return before_it;
end
$$;

-- session_search_path(target): the search_path under which the target's triggers are to run: the session's default, which is
-- what an application that uses the same connection settings has. Where there are no triggers, the short one.
create or replace function pgtally.session_search_path(target regclass) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case
        when exists (select from pg_trigger where tgrelid = target and not tgisinternal)
            then (select reset_val from pg_settings where name = 'search_path')
        else 'pg_catalog, pg_temp'
    end
$$;

-- settled_batch(consumer_id): the consumer's newest batch that was finished at least a minute ago, or a rotation period
-- where that is shorter, as were all before it; no row when there is none.
create or replace function pgtally.settled_batch(consumer_id integer) returns setof pgtally.batch
language sql stable set search_path = pg_catalog, pg_temp as $$
    select b.*
    from pgtally.batch b
    where b.consumer_id = $1 and b.finished_at <= clock_timestamp() - (
        select least(interval '1 minute', q.rotation_period)
        from pgtally.consumer c join pgtally.queue q using (queue_id) where c.consumer_id = $1)
    and b.batch_id < coalesce((select min(o.batch_id) from pgtally.batch o where o.consumer_id = $1 and o.finished_at is null), 9223372036854775807)
    order by b.batch_id desc limit 1
$$;

-- skip(queue_name, consumer_name): passes over everything that is pending; the consumer goes on with what commits from now on.
--
-- Open batches are forgotten; whoever is at work on one is waited for, and finds that it is not his any more. Failed events stay. Returns how many
-- events were passed over.
--
-- Errors: TL001 when there is no such queue or consumer; TL004 when the transaction is not READ COMMITTED; TL005 as require_own_cluster(); TL010 when
-- it is a counter.
create or replace function pgtally.skip(queue_name text, consumer_name text) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    consumer pgtally.consumer := pgtally.require_reader(queue_name, consumer_name);
    boundary pg_snapshot;
    position pgtally.batch;
    skipped bigint;
begin
    perform pgtally.lock_consumer(queue_name, consumer_name);
    perform pgtally.require_own_cluster(consumer);
    -- finish_batch() does not lock the consumer.
    perform from pgtally.batch b where b.consumer_id = consumer.consumer_id for update;
    boundary := pgtally.current_boundary();
    position := pgtally.consumer_position(consumer.consumer_id);
    execute format('select count(*) from (%s) e', pgtally.events_query(consumer.queue_id, pgtally.unfinished_since(consumer.consumer_id), boundary)) into skipped;
    update pgtally.failed_event f set batch_id = null where f.consumer_id = consumer.consumer_id and f.batch_id is not null;
    delete from pgtally.batch b where b.consumer_id = consumer.consumer_id and b.finished_at is null;
    insert into pgtally.batch (consumer_id, start_boundary, end_boundary, finished_at, batches, events, dropped_events)
    values (consumer.consumer_id, boundary, boundary, clock_timestamp(), position.batches, 0, 0);
    return skipped;
end
$$;

-- slot_at(at, rotation_period): the slot that writers use at that time; what ev_slot is by default.
--
-- The clock alone decides, so a writer reads no state; nothing depends on two clocks agreeing, since rotate() looks
-- at what a slot holds and not at when it was written. Written as an expression without SET, parsed when it is created: so it means the same
-- under every search_path, and the server puts it into the inserting statement instead of calling it (25 us, PostgreSQL 15).
create or replace function pgtally.slot_at(at timestamptz, rotation_period interval) returns smallint
language sql stable parallel safe
return pg_catalog.mod(pg_catalog.int8(pg_catalog.float8div(
    pg_catalog.date_part('epoch', at), pg_catalog.date_part('epoch', rotation_period))), 3::pg_catalog.int8)::pg_catalog.int2;

-- slot_is_consumed(queue_id, slot): whether every consumer of the queue has been past each event in the slot for a while.
--
-- For a minute, or for the rotation period where that is shorter, so that a reader whose snapshot is younger than that does
-- not lose sight of events which were pending for it. A consumer that has no boundary of that age yet, or one of another
-- cluster, says no. Without consumers the answer is yes.
create or replace function pgtally.slot_is_consumed(queue_id integer, slot integer) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    consumer record;
    unconsumed boolean;
begin
    for consumer in
        select c.system_identifier, b.end_boundary
        from pgtally.consumer c left join lateral pgtally.settled_batch(c.consumer_id) b on true
        where c.queue_id = queue_id
    loop
        if consumer.end_boundary is null or consumer.system_identifier <> pgtally.system_identifier() then
            return false;
        end if;
        execute format(
            'select exists (select from pgtally.event_%1$s_%2$s where ev_txid >= $1)
                or exists (select from pgtally.event_%1$s_%2$s where ev_txid = any ($2))', queue_id, slot)
        into unconsumed
        using pg_snapshot_xmax(consumer.end_boundary), array(select pg_snapshot_xip(consumer.end_boundary));
        if unconsumed then
            return false;
        end if;
    end loop;
    return true;
end
$$;

-- slot_status(): one row for each slot that holds events, at a price that does not grow with their number.
--
-- slot_table: the slot itself. bytes: its size with its index. oldest, newest: about when its events were written, by the first and the last thousand in the order of their
-- transactions. waits_for: the consumers that have not finished all of its events, where the oldest is older than a slot is kept as a rule
-- (four rotation periods and a minute): overdue. A slot that is overdue and waits for nobody is held by a transaction that has written there or reads it, or nobody calls rotate().
create or replace function pgtally.slot_status()
returns table (queue text, slot integer, slot_table regclass, bytes bigint, oldest timestamptz, newest timestamptz, overdue boolean, waits_for text[])
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
    own_cluster constant bigint := pgtally.system_identifier();
    found_slot record;
    events text;
    consumer record;
    unconsumed boolean;
begin
    for found_slot in
        select q.queue_id, q.name, q.rotation_period, s as number, format('pgtally.event_%s_%s', q.queue_id, s)::regclass as slot_table
        from pgtally.queue q, generate_series(0, 2) s order by q.name, s
    loop
        continue when pg_relation_size(found_slot.slot_table) = 0;
        queue := found_slot.name;
        slot := found_slot.number;
        slot_table := found_slot.slot_table;
        bytes := pg_total_relation_size(slot_table);
        -- Of the queue, not of the slot, so that whoever may read the events' times may call this.
        events := format('pgtally.event_%s where ev_slot = %s', found_slot.queue_id, found_slot.number);
        execute format(
            'select (select min(f.ev_time) from (select ev_time from %1$s order by ev_txid limit 1000) f),
                (select max(l.ev_time) from (select ev_time from %1$s order by ev_txid desc limit 1000) l)', events)
        into oldest, newest;
        overdue := coalesce(oldest < clock_timestamp() - 4 * found_slot.rotation_period - interval '1 minute', false);
        waits_for := '{}';
        if overdue then
            for consumer in
                select c.name, c.system_identifier, pgtally.unfinished_since(c.consumer_id) as boundary
                from pgtally.consumer c where c.queue_id = found_slot.queue_id order by c.name
            loop
                execute format('select exists (select from %1$s and ev_txid >= $1) or exists (select from %1$s and ev_txid = any ($2))', events)
                into unconsumed
                using pg_snapshot_xmax(consumer.boundary), array(select pg_snapshot_xip(consumer.boundary));
                if unconsumed or consumer.system_identifier <> own_cluster then
                    waits_for := waits_for || consumer.name;
                end if;
            end loop;
        end if;
        return next;
    end loop;
end
$$;

-- slot_waits_for(queue_id, slot): the consumers that have not finished all events in the slot, by name. While there is one, the slot is not emptied.
--
-- A consumer whose position is another cluster's has finished none. Of the index, only the end is read (see due_counters()). Of the queue, not of the slot, so that whoever may read the events' times may call it.
create or replace function pgtally.slot_waits_for(queue_id integer, slot integer) returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
declare
    consumer record;
    unfinished boolean;
    names text[] := '{}';
begin
    for consumer in
        select c.name, c.system_identifier = pgtally.system_identifier() as own_cluster, pgtally.unfinished_since(c.consumer_id) as boundary
        from pgtally.consumer c where c.queue_id = queue_id order by c.name
    loop
        execute format(
            case when consumer.own_cluster
                then 'select exists (select from pgtally.event_%1$s where ev_slot = %2$s and ev_txid >= $1) or exists (select from pgtally.event_%1$s where ev_slot = %2$s and ev_txid = any ($2))'
                else 'select exists (select from pgtally.event_%1$s where ev_slot = %2$s)' end, queue_id, slot)
        into unfinished
        using pg_snapshot_xmax(consumer.boundary), array(select pg_snapshot_xip(consumer.boundary));
        if unfinished then
            names := names || consumer.name;
        end if;
    end loop;
    return names;
end
$$;

-- source_expression(source_table, expression, is_condition): the expression as the server understands it, for a trigger.
--
-- It may use the row's own columns and immutable functions only, or the count would depend on when it was taken; the
-- server itself checks that, as for an index. pg_get_expr writes the result with every constant typed and every name
-- outside pg_catalog qualified, so it means the same in every session, and two ways of writing it compare equal.
--
-- It runs with the rights of whoever creates the counter, in triggers that others fire. So he must be allowed to call each function in it (the cursor checks that); and no function may belong to a
-- role that has not his rights anyway, as its owner could put something else in its place later.
--
-- Errors: TL003 when it cannot be used; 42501 when the caller may not call a function in it.
create or replace function pgtally.source_expression(source_table regclass, expression text, is_condition boolean) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    probe constant text := format('pgtally.probe_%s', pg_backend_pid());
    single refcursor;
    canonical text;
    result_type regtype;
    foreign_function text;
    message text;
begin
    if expression is null then
        return null;
    end if;
    begin
        -- A cursor takes one query and no more, and runs nothing yet. The line break ends a comment.
        open single for execute format(E'select (%s\n) from %s limit 0', expression, source_table);
        close single;
        execute format('create table %s (like %s including generated)', probe, source_table);
        if is_condition then
            execute format(E'create index on %s ((1)) where (%s\n)', probe, expression);
        else
            execute format(E'create index on %s ((%s\n))', probe, expression);
        end if;
        select case when is_condition then pg_get_expr(indpred, indrelid) else pg_get_indexdef(indexrelid, 1, false) end, atttypid
        into canonical, result_type
        from pg_index join pg_attribute on attrelid = indexrelid and attnum = 1
        where indrelid = probe::regclass;
        if (select indnatts from pg_index where indrelid = probe::regclass) > 1 then
            raise exception 'it is more than one';
        end if;
        select p.oid::regprocedure::text into foreign_function
        from pg_index i
        join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
        left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
        join pg_proc p on p.oid = case when d.refclassid = 'pg_proc'::regclass then d.refobjid else o.oprcode end
        where i.indrelid = probe::regclass and not pg_has_role(p.proowner, current_user, 'usage') limit 1;
        if found then
            raise exception 'the function % belongs to another role, which could change what it does', foreign_function;
        end if;
        raise exception using errcode = 'TL000';
    exception
        when sqlstate 'TL000' then null; -- takes the probe away again
        -- These are not about the expression.
        when lock_not_available or deadlock_detected or query_canceled or insufficient_privilege then raise;
        when others then message := sqlerrm;
    end;
    if message is null and not is_condition and result_type not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype) then
        message := format('it is of type %s, and only smallint, integer and bigint add up exactly', result_type);
    end if;
    if message is not null then
        raise exception 'The expression "%" cannot be used for the rows of %: %', expression, source_table, message
            using errcode = 'TL003', hint = case when is_condition
                then 'Give a condition on the columns of one row, such as kind = ''like''.'
                else 'Give a whole number computed from the columns of one row, such as weight.' end;
    end if;
    return canonical;
end
$$;

-- sync_triggers(queue_name): puts the triggers of a queue's source on its table and on partitions that have none yet, and takes
-- them off tables that are partitions no longer.
--
-- A partition that is created later needs them for the statements on itself; those on the whole table are counted anyway.
-- Workers call this all the time, as create_counter() does. Returns the number of tables changed; takes locks, and a
-- transaction id, only if there are any. A source that was dropped is left alone.
--
-- Rows that a partition brings along or takes away fire no trigger: then the queue's counters get a reconciliation to do, which
-- counter_problems() shows. Rows that came through the table since the partition belongs to it were counted, and do not matter.
--
-- Runs with its owner's rights: a worker needs EXECUTE on it and nothing on the tables. It puts no triggers but pgtally's own on no tables but the source and its partitions.
--
-- Errors: TL001 when there is no such queue; 42501 when the counter is being created and a partition is another role's.
create or replace function pgtally.sync_triggers(queue_name text) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set row_security = off as $$
<<sync_triggers>>
declare
    id constant integer := pgtally.queue_id(queue_name);
    -- One table can be the source of two installations.
    prefix constant text := (
        select relnamespace::regnamespace::text || '_' || id from pg_class where oid = 'pgtally.queue'::regclass);
    source constant pgtally.source := (select s from pgtally.source s where s.queue_id = id);
    source_table constant oid := source.source_table;
    known_tables regclass[] := source.tables;
    tables regclass[];
    locked boolean := false;
    changed integer := 0;
    relation record;
    trigger_name name;
begin
    if exists (select from pg_class where oid = source_table) and not exists (
        select from pg_attribute a where a.attrelid = source_table and a.attname = source.source_key and not a.attisdropped)
    then
        -- Its key column was renamed, or it is another table altogether: a dump keeps the number of one that was dropped.
        return 0;
    end if;

    loop
        tables := array(
            select c.oid::regclass from pg_class c
            where c.oid = source_table or c.oid in (select relid from pg_partition_tree(source_table)) order by c.oid);
        exit when locked or tables = known_tables or tables = '{}';
        -- Another worker may be at it, and its user have reconciled by now: so once more, as it is when that has ended.
        select s.tables into known_tables from pgtally.source s where s.queue_id = id for update;
        locked := true;
    end loop;
    if tables <> known_tables and tables <> '{}' then
        -- Before any trigger is made, whose lock writers would have to wait for. When the counter is created nothing is known.
        if known_tables <> '{}' and pgtally.partitions_brought_rows(known_tables, tables) then
            insert into pgtally.reconciliation as r (counter_id, reason)
            select k.counter_id, 'partitions' from pgtally.counter k join pgtally.consumer c on c.consumer_id = k.counter_id where c.queue_id = id
            -- Under another number: whoever is at an unfinished one ends.
            on conflict (counter_id) do update set reconciliation_id = default, after_key = null, began_at = default,
                reason = case r.reason when 'backfill' then r.reason else excluded.reason end;
        end if;
        update pgtally.source s set tables = sync_triggers.tables where s.queue_id = id;
    end if;
    for relation in
        select c.oid, c.oid::regclass as name, c.relkind, wanted.oid is not null as wanted
        from (
            select source_table as oid where source_table is not null
            union select relid from pg_partition_tree(source_table)
        ) wanted
        full join (
            select distinct t.tgrelid as oid from pg_trigger t
            where t.tgfoid = to_regproc(format('pgtally.source_%s_insert', id))
        ) present using (oid)
        join pg_class c using (oid)
        where wanted.oid is null or present.oid is null
    loop
        begin
            if relation.wanted then
                execute format(
                    'create trigger %4$I after insert on %2$s referencing new table as new_rows
                        for each statement execute function pgtally.source_%1$s_insert(%3$L);
                    create trigger %5$I after update on %2$s referencing old table as old_rows new table as new_rows
                        for each statement execute function pgtally.source_%1$s_update(%3$L);
                    create trigger %6$I after delete on %2$s referencing old table as old_rows
                        for each statement execute function pgtally.source_%1$s_delete(%3$L)',
                    id, relation.name, queue_name, prefix || '_insert', prefix || '_update', prefix || '_delete');
                if relation.relkind = 'r' then
                    execute format(
                        'create trigger %4$I before truncate on %2$s
                            for each statement execute function pgtally.source_%1$s_truncate(%3$L)',
                        id, relation.name, queue_name, prefix || '_truncate');
                end if;
            else
                for trigger_name in select t.tgname from pg_trigger t where t.tgrelid = relation.oid and t.tgname like prefix || '\_%' loop
                    execute format('drop trigger %I on %s', trigger_name, relation.name);
                end loop;
            end if;
            changed := changed + 1;
        exception when insufficient_privilege then
            -- A partition that belongs to another role is no reason to leave out the rest; counter_problems() shows it.
            if known_tables = '{}' then
                raise;
            end if;
        end;
    end loop;
    return changed;
end
$$;

-- system_identifier(): what tells this database cluster from every other one.
create or replace function pgtally.system_identifier() returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select system_identifier from pg_control_system()
$$;

-- target_headroom(): for each counter whose column is smaller than bigint: the largest count that is known, without reading the table.
--
-- type: smallint or integer. largest: with an index that begins with the column, exact (found_by 'index'); else the largest of what ANALYZE has seen and of the counts
-- of the keys of the newest thousand events, among which a key that grows fast is sure to be (found_by 'sample'). NULL when nothing is known. limit_value: what the column can hold.
create or replace function pgtally.target_headroom()
returns table (counter text, target regclass, target_column name, type text, largest bigint, limit_value bigint, found_by text)
language plpgsql stable set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = '10ms' set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
    found_counter record;
    recent bigint;
begin
    for found_counter in
        select k.*, c.queue_id, a.atttypid::regtype::text as type,
            exists (
                select from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
                where i.indrelid = k.target_table and i.indkey[0] = a.attnum and i.indisvalid and i.indpred is null and m.amname = 'btree') as indexed,
            (
                select max(v.value)
                from pg_class t join pg_namespace n on n.oid = t.relnamespace
                join pg_stats s on s.schemaname = n.nspname and s.tablename = t.relname and s.attname = k.target_column,
                unnest(s.most_common_vals::text::bigint[] || s.histogram_bounds::text::bigint[]) v(value)
                where t.oid = k.target_table) as analyzed
        from pgtally.counter k
        join pgtally.consumer c on c.consumer_id = k.counter_id
        join pg_attribute a on a.attrelid = k.target_table and a.attname = k.target_column and not a.attisdropped
        where a.atttypid in ('smallint'::regtype, 'integer'::regtype)
        order by k.name
    loop
        counter := found_counter.name;
        target := found_counter.target_table;
        target_column := found_counter.target_column;
        type := found_counter.type;
        limit_value := case type when 'smallint' then 32767 else 2147483647 end;
        largest := found_counter.analyzed;
        found_by := 'sample';
        begin
            if found_counter.indexed then
                execute format('select max(%I) from %s', found_counter.target_column, found_counter.target_table) into largest;
                found_by := 'index';
            elsif pgtally.is_unique_key(found_counter.target_table, found_counter.target_key) then
                execute format('select max(t.%1$I) from %2$s t where t.%3$I in (select e.ev_key from pgtally.event_%4$s e order by e.ev_txid desc limit 1000)',
                    found_counter.target_column, found_counter.target_table, found_counter.target_key, found_counter.queue_id)
                into recent;
                largest := greatest(largest, recent);
            end if;
        exception when insufficient_privilege or lock_not_available then
            -- What ANALYZE has seen is what there is.
            null;
        end;
        return next;
    end loop;
end
$$;

-- unfinished_since(consumer_id): the boundary up to which the consumer has finished everything.
create or replace function pgtally.unfinished_since(consumer_id integer) returns pg_snapshot
language sql stable set search_path = pg_catalog, pg_temp as $$
    select coalesce(
        (select b.start_boundary from pgtally.batch b where b.consumer_id = $1 and b.finished_at is null order by b.batch_id limit 1),
        (pgtally.consumer_position($1)).end_boundary)
$$;

-- unregister_consumer(queue_name, consumer_name): removes a consumer, its position and its failed events.
--
-- Errors: TL001 when there is none of that name; TL010 when it is a counter (use drop_counter).
create or replace function pgtally.unregister_consumer(queue_name text, consumer_name text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    id constant integer := pgtally.lock_consumer(queue_name, consumer_name);
begin
    if exists (select from pgtally.counter k where k.counter_id = id) then
        raise exception 'Consumer "%" of queue "%" is a counter', consumer_name, queue_name
            using errcode = 'TL010', hint = 'Use drop_counter().';
    end if;
    -- Waits for whoever is at work on a batch, which may leave failed events.
    delete from pgtally.batch b where b.consumer_id = id;
    delete from pgtally.failed_event f where f.consumer_id = id;
    delete from pgtally.consumer c where c.consumer_id = id;
end
$$;

-- wait_for_carried(counter_name, min_age, max_wait, report, notify): waits for the row that has been carried longest and adds to it.
--
-- For a row that is nearly always locked, which SKIP LOCKED alone might never find free: standing in line for it
-- means having it next. One row in a transaction of its own that holds nothing else, so it cannot be part of a
-- deadlock, and for max_wait at most. Only what has been carried for min_age is waited for. added: it
-- had a row to wait for and got it. report, notify, version, changes: as apply_batch().
--
-- The consumer's lock is not taken while waiting: batches go on meanwhile. Where somebody is told, it is taken afterwards, for the version; and because the row is ours by then, which
-- others may want, for 50 ms at most: if a batch in hand takes longer, this is tried again another time.
--
-- Errors: TL001 when there is no such counter; TL004 when the transaction is not READ COMMITTED; as add_deltas().
create or replace function pgtally.wait_for_carried(
    counter_name text, min_age interval default '1 second', max_wait interval default '500 milliseconds',
    report boolean default false, notify boolean default false, out added boolean, out version bigint, out changes json
) language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off set lock_timeout = 0 as $$
declare
    counter constant pgtally.counter := pgtally.require_counter(counter_name);
    waited_for text;
    dropped bigint;
    changed bigint;
begin
    added := false;
    perform pgtally.require_read_committed();
    execute format('select key::text from pgtally.carry_%s where since < clock_timestamp() - $1 order by since limit 1',
        counter.counter_id)
    into waited_for using min_age;
    if waited_for is null then
        return;
    end if;
    perform set_config('lock_timeout', greatest((extract(epoch from max_wait) * 1000)::integer, 1)::text, true);
    begin
        execute format('select from %s where %I = $1::%s for no key update', counter.target_table, counter.target_key, pgtally.key_type(counter))
        using waited_for;
        if report or notify then
            perform set_config('lock_timeout', '50ms', true);
            perform from pgtally.consumer c where c.consumer_id = counter.counter_id for update;
        end if;
    exception when lock_not_available then
        return;
    end;
    execute format(
        'select a.dropped_events, a.changed, a.changes from pgtally.add_deltas($1, array[$2::%s], array[0::bigint], array[0::bigint], $3) a', pgtally.key_type(counter))
    into dropped, changed, changes using counter, waited_for, report;
    version := pgtally.finish_applying(counter, dropped, changed, report, notify);
    added := true;
end
$$;

do $pgtally$
declare
    old record;
begin
    if pg_catalog.current_setting('pgtally.transaction', true) is distinct from pg_catalog.pg_current_xact_id()::pg_catalog.text then
        raise exception 'This must be run as one transaction' using hint = 'With psql: psql --single-transaction --set ON_ERROR_STOP=1.';
    end if;
    perform pgtally.renew_access();
    delete from pgtally.installation;
    insert into pgtally.installation (schema_version, functions_hash) values (1, '6f9931992450eb0c53a8fd749193fc1807b42ae8492189fa0c8d39157a9eb8a7');
    perform set_config('search_path', current_setting('pgtally.search_path'), true), set_config('check_function_bodies', 'on', true);
end
$pgtally$;

commit;

-- What was done with it.

-- A database in use, with something of everything: what an upgrade may find. Counters of each sort; events that are pending, carried, packed, and of an open
-- transaction's past; a backfill that was interrupted; consumers with open batches, failed events and dead letters; milestones; what was forwarded from elsewhere.

begin;
create table posts (id bigint primary key, like_count bigint not null default 0);
create table likes (id bigint generated always as identity primary key, post_id bigint references posts on delete cascade, user_id bigint, kind text default 'like', weight integer default 1);
create table votes (poll_id integer, at date) partition by range (at);
create table votes_old partition of votes for values from (minvalue) to ('2020-01-01');
create table votes_new partition of votes for values from ('2020-01-01') to (maxvalue);
create index on likes (post_id);
insert into posts select n from generate_series(1, 300) n;
insert into likes (post_id, user_id, kind) select n % 300 + 1, n, case n % 5 when 0 then 'laugh' else 'like' end from generate_series(1, 600) n;
insert into votes values (1, '2019-01-01'), (1, '2021-01-01'), (2, '2021-01-01');
commit;

begin;
select pgtally.create_counter('post_likes', source => 'likes', source_key => 'post_id', where_condition => 'kind = ''like''', source_data => '{user_id}',
    target => 'posts', target_key => 'id', target_column => 'like_count', milestones => '{2,5}', retain => '1 hour');
select pgtally.create_counter('weights', source => 'likes', source_key => 'post_id', sum_expression => 'weight + 1');
select pgtally.create_counter('votes', source => 'votes', source_key => 'poll_id');
select pgtally.create_counter('likes again', queue => 'post_likes', on_missing => 'insert');
select pgtally.create_counter('page_views', key_type => 'text');
select pgtally.create_counter('received_likes');
select pgtally.create_queue('mails', 'uuid');
commit;

-- The first is whole, the second waits to be added, the third is interrupted, the fourth has not begun.
begin;
select pgtally.reconcile_range(pgtally.begin_reconciliation('post_likes'), null);
select pgtally.reconcile_range(pgtally.begin_reconciliation('weights'), null);
commit;
begin;
select pgtally.apply_carried('post_likes');
select pgtally.reconcile_range(pgtally.begin_reconciliation('likes again'), 100);
select pgtally.register_consumer('post_likes', 'notifier'), pgtally.register_consumer('post_likes', 'archive'), pgtally.register_consumer('post_likes', 'paused one'),
    pgtally.register_consumer('mails', 'sender');
select pgtally.pause_consumer('post_likes', 'paused one');
commit;

-- Batches: what is packed, a claimed one, an open one.
begin;
insert into likes (post_id, user_id) select n % 300 + 1, n from generate_series(1, 700) n;
delete from likes where id % 100 = 1;
select pgtally.add_event('page_views', '/home'), pgtally.add_event('page_views', '/about', 3);
select pgtally.insert_event('mails', '00000000-0000-0000-0000-000000000001'::text, 1, '{"to": "somebody"}');
commit;
begin;
select pgtally.apply_batch('post_likes', max_keys => 100);
select pgtally.apply_batch('page_views');
commit;
begin;
select pgtally.claim_batch('post_likes', 'notifier', interval '1 minute', in_order => false);
select pgtally.next_batch('post_likes', 'archive');
commit;
begin;
select pgtally.receive_batch('received_likes', e.batch, e.keys, e.deltas)
from pgtally.batch b join pgtally.consumer c using (consumer_id), pgtally.export_batch(b.batch_id) e where c.name = 'notifier' and b.finished_at is null;
select pgtally.fail_event('post_likes', 'notifier', e.ev_id, e.ev_time, e.ev_key, e.ev_delta, e.ev_data, 1, 'no such address', case when e.ev_key = '7' then interval '0' end)
from pgtally.batch b join pgtally.consumer c using (consumer_id), pgtally.get_batch_events(b.batch_id) e where c.name = 'notifier' and b.finished_at is null and e.ev_key in ('7', '8');
select pgtally.finish_batch(b.batch_id, b.claim) from pgtally.batch b join pgtally.consumer c using (consumer_id) where c.name = 'notifier' and b.finished_at is null;
commit;

-- Pending for all of them.
begin;
insert into likes (post_id, user_id, weight) select 9, n, n from generate_series(1, 20) n;
update likes set post_id = 10 where post_id = 11;
insert into votes values (2, '2019-01-01'), (3, '2021-01-01');
select pgtally.add_event('page_views', '/home');
commit;
begin;
select pgtally.claim_batch('post_likes', 'notifier', interval '1 second', in_order => false);
commit;
