-- drift_query(counter_name): SQL text of a query for each key's drift: count(source) - (stored + carried + pending).
--
-- The four are read by one statement, in one snapshot. While all works as it should the drift of a key is the same in
-- every snapshot, so whatever this measures can be corrected at any time later. A queue without a source has
-- nothing to be held against: then the query gives no row.
create or replace function pgtally.drift_query(counter_name text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    d record;
    key_type text;
begin
    select k.*, q.queue_id, q.key_type, s.source_table, s.source_key, s.where_condition, s.sum_expression, p.end_boundary into d
    from pgtally.counter k
    join pgtally.consumer c on c.consumer_id = k.counter_id
    join pgtally.queue q using (queue_id)
    left join pgtally.source s using (queue_id),
    lateral pgtally.consumer_position(k.counter_id) p
    where k.name = counter_name;
    -- A key of source or target may be beyond the range of the queue's.
    key_type := case when d.key_type in ('smallint', 'integer') then 'bigint' else d.key_type end;
    if d.source_table is null then
        return format('select null::%s as key, 0::bigint as drift where false', key_type);
    end if;
    return format(
        'select key, pgtally.sum_delta(delta) as drift from (
            select %1$I::%2$s as key, (%3$s)::bigint as delta from %4$s where %1$I is not null and (%5$s)
            union all select %6$I::%2$s, -%7$I::bigint from %8$s where %7$I <> 0
            union all select key, -delta from pgtally.carry_%9$s
            union all select ev_key, -ev_delta from (%10$s) pending
        ) parts group by key',
        d.source_key, key_type, coalesce(d.sum_expression, '1'), d.source_table, coalesce(d.where_condition, 'true'),
        d.target_key, d.target_column, d.target_table, d.counter_id,
        pgtally.events_query(d.queue_id, d.end_boundary, null));
end
$$;
