-- create_buckets(counter): makes the tables that hold the counter's time buckets and decayed scores, as pgtally.bucket and pgtally.trend have them; see add_to_buckets().
create or replace function pgtally.create_buckets(counter pgtally.counter) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    key_type constant text := pgtally.key_type(counter);
    columns text;
    bucket pgtally.bucket;
    trend pgtally.trend;
    relation text;
begin
    select string_agg(format('start_%1$s timestamptz not null default ''-infinity'', count_%1$s bigint not null default 0, ', b.number), '' order by b.number) into columns
    from pgtally.bucket b where b.counter_id = counter.counter_id;
    select coalesce(columns, '') || coalesce(string_agg(format(
        'score_%1$s double precision not null default 0, landmark_%1$s integer not null default 0, floor_%1$s integer not null default -2147483648,
        level_%1$s integer generated always as (pgtally.score_level(score_%1$s, landmark_%1$s, floor_%1$s)) stored, ', t.number), '' order by t.number), '')
    into columns from pgtally.trend t where t.counter_id = counter.counter_id;
    if columns = '' then
        return;
    end if;

    execute format('create table pgtally.recent_%s (%s key %s primary key) with (fillfactor = 50)', counter.counter_id, columns, key_type);
    if exists (select from pgtally.trend t where t.counter_id = counter.counter_id) then
        execute format('create table pgtally.later_%1$s (time timestamptz not null, delta bigint not null, key %2$s not null)', counter.counter_id, key_type);
        execute format('create index on pgtally.later_%s (time)', counter.counter_id);
    end if;
    for trend in select * from pgtally.trend t where t.counter_id = counter.counter_id order by t.number loop
        execute format('create index on pgtally.recent_%1$s (level_%2$s desc) where level_%2$s is not null', counter.counter_id, trend.number);
    end loop;
    for bucket in select * from pgtally.bucket b where b.counter_id = counter.counter_id order by b.number loop
        relation := format('pgtally.bucket_%s_%s', counter.counter_id, bucket.number);
        -- By time first: what is written lies close together, and so does what a window of time is the sum of.
        execute format('create table %s (start timestamptz, count bigint not null, slot smallint, key %s, primary key (start, key, slot)) partition by list (slot)', relation, key_type);
        for slot in 0..case when bucket.slot_span is null then 0 else 6 end loop
            execute format('create table %1$s_%2$s partition of %1$s for values in (%2$s)', relation, slot);
        end loop;
        execute format('create view pgtally.buckets_%s_%s as select start, key, pgtally.sum_delta(count) as count from (%s) r group by start, key',
            counter.counter_id, bucket.number, pgtally.bucket_rows(bucket));
    end loop;
    perform pgtally.renew_access(array(
        select c.oid::regclass from pg_class c
        where c.relnamespace = (select relnamespace from pg_class where oid = 'pgtally.bucket'::regclass) and c.relkind in ('r', 'p', 'v')
            and c.relname ~ format('^((recent|later)_%1$s|buckets?_%1$s_\d+(_\d+)?)$', counter.counter_id)));
end
$$;
