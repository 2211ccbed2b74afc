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
