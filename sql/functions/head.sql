-- head(counter, relation, shown, condition, ordering, max_keys, scope): of the rows r of a table that satisfy a condition the max_keys first ones: key and `shown`, an SQL expression, both as text.
--
-- Where ordering begins with a column that has an index, a level, which orders the keys roughly, it gives them level by level, and each level is sorted (incremental sort) until there are max_keys.
--
-- With a target of the user's, keys that have no row in it any more are left out; and where scope is given, those whose row does not satisfy it.
create or replace function pgtally.head(
    counter pgtally.counter, relation text, shown text, condition text, ordering text, max_keys integer, scope jsonb
) returns table (key text, value text) language plpgsql stable
-- Workers for so few rows take longer to start than they help.
set search_path = pg_catalog, pg_temp set datestyle = iso set jit = off set max_parallel_workers_per_gather = 0 as $$
begin
    return query execute format(
        'select r.key::text, (%s)::text from %s r %s and (%s) order by %s, r.key limit %s',
        shown, relation,
        case when counter.own_target then '' else format('join %s t on t.%I = r.key', counter.target_table, counter.target_key) end || ' where ' || pgtally.scope_condition(counter, scope),
        condition, ordering, max_keys);
end
$$;
