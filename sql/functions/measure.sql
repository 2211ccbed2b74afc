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
-- What the counter keeps by time is compared after that (measure_times), in later snapshots.
--
-- last_key: the last key of the range; NULL when there is none after it. checked_keys: how many keys were compared. drifting_keys: how many drift. drifting: the first max_drifts of these (NULL:
-- all), each with its counts, as text (JSON's numbers end at 2^53 in many languages); where it is not the count that drifts, `part` says what does.
--
-- Errors: TL003 when max_keys is below 1, when source or target was dropped, and as require_all_rows(); TL004 when the transaction is not READ COMMITTED; TL005 as pending_query().
create or replace function pgtally.measure(
    counter pgtally.counter, keys text[], after_key text, max_keys integer, against name, correcting boolean, max_drifts integer default 1000,
    out last_key text, out checked_keys bigint, out drifting_keys bigint, out drifting jsonb
) language plpgsql volatile set search_path = pg_catalog, pg_temp set row_security = off set work_mem = '64MB' as $$
declare
    -- Nobody else begins or ends a reconciliation while we are correcting.
    backfilling constant boolean := counter.milestones is not null and pgtally.is_backfilling(counter.counter_id);
    count_keys text[];
    time_keys text[];
    time_drifting jsonb;
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
        select (select count(*) from measured), array(select key::text from drifts), (
            select coalesce(jsonb_agg(jsonb_build_object(''key'', key::text, ''source'', source::text, ''stored'', stored::text,
                ''carried'', carried::text, ''pending'', pending::text, ''drift'', drift::text) order by key), ''[]'')
            from (select * from drifts order by key limit %s) first)',
        pgtally.counts_query(counter, keys, after_key, last_key, against),
        case when correcting
            then format(', corrections as (insert into pgtally.carry_%s (key, delta, events, reached) select key, drift, 1, source - pending from %s)',
                counter.counter_id, case when backfilling then format('measured where drift <> 0 or source - pending >= %s', counter.milestones[1]) else 'drifts' end)
            else '' end,
        coalesce(max_drifts::text, 'all'))
    into checked_keys, count_keys, drifting;
    drifting_keys := cardinality(count_keys);

    if against is null then
        select t.drifting_keys, t.drifting into time_keys, time_drifting
        from pgtally.measure_times(counter, keys, after_key, last_key, correcting, max_drifts - jsonb_array_length(drifting)) t;
        drifting_keys := (select count(distinct key) from unnest(count_keys || time_keys) key);
        drifting := drifting || time_drifting;
    end if;
end
$$;
