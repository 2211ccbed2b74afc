-- counter_definition(counter_name): the definition as create_counter() took it, or NULL; what two definitions are
-- compared by. A counter that follows another's queue has no source of its own.
create or replace function pgtally.counter_definition(counter_name text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
    select jsonb_build_object(
        'queue', q.name, 'key_type', q.key_type, 'rotation_period', case when q.name = k.name then q.rotation_period end, 'retain', case when q.name = k.name then q.retain end,
        'source', s.source_table::text, 'source_key', s.source_key, 'where', s.where_condition, 'sum', s.sum_expression, 'data', to_jsonb(s.data_columns), 'time', s.time_column,
        'target', case when not k.own_target then k.target_table::text end,
        'target_key', case when not k.own_target then k.target_key end,
        'target_column', case when not k.own_target then k.target_column end,
        'on_missing', k.on_missing, 'milestones', to_jsonb(k.milestones),
        'buckets', (select jsonb_agg(jsonb_build_array(b.width, b.retain, b.time_zone) order by b.number) from pgtally.bucket b where b.counter_id = k.counter_id),
        'ranking', k.ranked, 'half_lives', (select to_jsonb(array_agg(t.half_life order by t.number)) from pgtally.trend t where t.counter_id = k.counter_id))
    from pgtally.counter k
    join pgtally.consumer c on c.consumer_id = k.counter_id
    join pgtally.queue q using (queue_id)
    left join pgtally.source s on s.queue_id = q.queue_id and q.name = k.name
    where k.name = counter_name
$$;
