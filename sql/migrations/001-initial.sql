-- The tables of pgtally. A migration is frozen once it is released; a later change is a new file.
--
-- The files are written for the schema `pgtally`; for another schema the installer replaces that name.
-- Tables made for one queue or counter carry its number: event_1 (with the slots event_1_0 to event_1_2), carry_1, count_1, bucket_1_2.

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
    -- When a row happened; NULL: when its event was written.
    time_column name,
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
    -- Totals of the consumer up to this batch; all but the first are kept for counters only.
    batches bigint not null,
    events bigint not null,
    dropped_events bigint not null,
    -- See add_to_buckets().
    late_events bigint not null default 0,
    future_events bigint not null default 0,
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
    -- Whether there is a table to read the keys with the greatest counts from (ranking_table).
    ranked boolean not null,
    -- Two counters would both add to it.
    unique (target_table, target_column)
);

-- The widths of a counter's time buckets, in ascending order. What they hold is in recent_<counter_id> and bucket_<counter_id>_<number> (add_to_buckets).
create table pgtally.bucket (
    counter_id integer references pgtally.counter on delete cascade,
    number integer,
    width interval not null,
    -- Where the width is a day or more.
    time_zone text,
    -- NULL: for ever.
    retain interval,
    -- Slots of that length follow one another; those that have ended before now() - retain are emptied (expire_buckets). NULL: one slot for ever.
    slot_span interval,
    -- Buckets that start before it are not kept. Only ever moves on, from one slot to the next.
    kept_since timestamptz not null,
    primary key (counter_id, number)
);

-- The half-lives of a counter's decayed scores. The scores are in recent_<counter_id>, and what lies ahead in later_<counter_id>.
create table pgtally.trend (
    counter_id integer references pgtally.counter on delete cascade,
    number integer,
    half_life interval not null,
    -- Scores whose score_level() is below it need not be in the index: some 20,000 were above when it was set (add_to_buckets). Only ever rises.
    floor integer not null default -2147483648,
    primary key (counter_id, number)
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
