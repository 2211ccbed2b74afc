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
-- source_time: the column that says when a row happened; otherwise that is when its event was written. buckets: counts for each key and bucket of time are kept as well, an array of
-- {"width", "retain", "time_zone"}: see require_bucket(). half_lives: keeps an exponentially decayed score with each of these half-lives, a minute or more, for trending(). ranking: keeps what top() needs
-- to tell the keys with the greatest counts.
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
    milestones bigint[] default null, source_time name default null, buckets jsonb default null, ranking boolean default false, half_lives interval[] default null
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
    made_buckets pgtally.bucket[];
begin
    perform pgtally.require_owner();
    perform pgtally.require_read_committed();
    if counter_name is null or counter_name = '' then
        raise exception 'A counter needs a name' using errcode = 'TL003', hint = 'Give a name that is not empty.';
    elsif (source is null) <> (source_key is null) then
        raise exception 'Counter "%": source and source_key belong together', counter_name
            using errcode = 'TL003', hint = 'Give both, or neither for a counter of events from insert_event().';
    elsif source is null and num_nonnulls(where_condition, sum_expression, source_data, source_time) > 0 then
        raise exception 'Counter "%": where_condition, sum_expression, source_data and source_time need a source', counter_name
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
    elsif cardinality(half_lives) not between 1 and 10 or exists (select from unnest(half_lives) h where h is null or h < interval '1 minute' or not isfinite(h))
        or cardinality(half_lives) > (select count(distinct h) from unnest(half_lives) h)
    then
        raise exception 'Counter "%": the half-lives cannot be %', counter_name, half_lives
            using errcode = 'TL003', hint = 'Give 1 to 10 different ones, each of a minute or more.';
    elsif buckets is not null and (jsonb_typeof(buckets) <> 'array' or jsonb_array_length(buckets) not between 1 and 10) then
        raise exception 'Counter "%": the buckets cannot be %', counter_name, buckets
            using errcode = 'TL003', hint = 'Give an array of 1 to 10, such as [{"width": "1 hour", "retain": "30 days"}].';
    end if;
    made_buckets := array(select b from jsonb_array_elements(buckets) given, lateral pgtally.require_bucket(counter_name, given) b order by b.width, b.time_zone);
    if cardinality(made_buckets) > (select count(distinct b.width) from unnest(made_buckets) b) then
        raise exception 'Counter "%": two buckets are of the same width', counter_name
            using errcode = 'TL003', hint = 'Give each width once.';
    end if;

    -- One definition at a time; neither writers nor batches need this lock.
    lock table pgtally.counter in share row exclusive mode;

    if source is not null then
        perform pgtally.require_source(counter_name, source);
        source_type := pgtally.require_key_column(counter_name, source, source_key);
        where_condition := pgtally.source_expression(source, where_condition, true);
        sum_expression := pgtally.source_expression(source, sum_expression, false);
        perform pgtally.require_data_columns(counter_name, source, source_data);
        if source_time is not null then
            perform pgtally.require_time_column(counter_name, source, source_time);
        end if;
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
        'source', source::text, 'source_key', source_key, 'where', where_condition, 'sum', sum_expression, 'data', to_jsonb(source_data), 'time', source_time,
        'target', target::text, 'target_key', target_key, 'target_column', target_column,
        'on_missing', coalesce(on_missing, case when target is null then 'insert' else 'drop' end), 'milestones', to_jsonb(milestones),
        'buckets', (select jsonb_agg(jsonb_build_array(u.width, u.retain, u.time_zone) order by n)
            from unnest(made_buckets) with ordinality u(counter_id, number, width, time_zone, retain, slot_span, kept_since, n)),
        'ranking', ranking, 'half_lives', to_jsonb(half_lives));
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
    elsif ranking then
        execute format('create table pgtally.rank_%s (value bigint not null, key %s primary key) with (fillfactor = 50)', id, source_type);
    end if;
    if ranking then
        execute format(
            'alter table pgtally.%1$s_%2$s add column level smallint generated always as (
                case when value < 1 then 0 when value < 256 then 1 + floor(ln(value::double precision) / ln(2::double precision))
                    else 9 + floor(256 * (ln(value::double precision) / ln(2::double precision) - 8)) end) stored;
            create index on pgtally.%1$s_%2$s (level desc)',
            case when target is null then 'count' else 'rank' end, id);
    end if;
    perform pgtally.renew_access(array(
        select relation from unnest(array['carry', 'packed', 'carried', 'count', 'rank']) made, to_regclass(format('pgtally.%s_%s', made, id)) relation where relation is not null));
    insert into pgtally.counter (counter_id, name, target_table, target_key, target_column, on_missing, own_target, milestones, ranked)
    values (id, counter_name, coalesce(target, format('pgtally.count_%s', id)::regclass),
        coalesce(target_key, 'key'), coalesce(target_column, 'value'), wanted ->> 'on_missing', target is null, milestones, ranking);
    insert into pgtally.bucket
    select id, u.n, u.width, u.time_zone, u.retain, u.slot_span, u.kept_since
    from unnest(made_buckets) with ordinality u(counter_id, number, width, time_zone, retain, slot_span, kept_since, n);
    insert into pgtally.trend (counter_id, number, half_life) select id, h.n, h.half_life from unnest(half_lives) with ordinality h(half_life, n);
    perform pgtally.create_buckets(pgtally.require_counter(counter_name));

    if source is not null then
        insert into pgtally.source (queue_id, source_table, source_key, where_condition, sum_expression, data_columns, time_column, tables)
        values (number, source, source_key, where_condition, sum_expression, source_data, source_time, '{}');
        perform pgtally.create_source(number);
        perform pgtally.sync_triggers(counter_name);
    end if;
    if exists (select from pgtally.source s where s.queue_id = number) then
        insert into pgtally.reconciliation (counter_id, reason) values (id, 'backfill');
    elsif target is not null then
        -- No backfill will do that.
        if ranking then
            execute format('insert into pgtally.rank_%s (key, value) select %2$I, coalesce(%3$I, 0) from %4$s where %2$I is not null', id, target_key, target_column, target);
        end if;
        if milestones is not null then
            execute format(
                'insert into pgtally.milestone (counter_id, key, threshold, value)
                select $1, t.%1$I::text, threshold, t.%2$I from %3$s t, unnest($2[:width_bucket(t.%2$I::bigint, $2)]) threshold
                where t.%2$I >= $2[1] and t.%1$I is not null',
                target_key, target_column, target)
            using id, milestones;
        end if;
    end if;
    if milestones is not null and not pgtally.create_queue(counter_name || '.milestones', source_type) then
        raise exception 'Counter "%": there is a queue "%" already', counter_name, counter_name || '.milestones'
            using errcode = 'TL002', hint = 'Drop that queue first, or take another name.';
    end if;
    return true;
end
$$;
