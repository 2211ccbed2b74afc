-- head(counter, relation, level, shown, sorting, max_keys, scope, least_level): the max_keys keys of a table that come first: key and `shown`, an SQL expression, both as text.
--
-- level: the table's column with an index, which orders the keys roughly: a key of a higher level comes before each of a lower one. sorting: SQL to order the keys of one level by, before the key itself. So the
-- index gives them level by level, and each level is sorted (incremental sort) until there are max_keys. Levels below least_level do not count.
--
-- With a target of the user's, keys that have no row in it any more are left out; and where scope is given, those whose row does not satisfy it.
create or replace function pgtally.head(
    counter pgtally.counter, relation text, level text, shown text, sorting text, max_keys integer, scope jsonb, least_level integer
) returns table (key text, value text) language plpgsql stable
-- Workers for so few rows take longer to start than they help.
set search_path = pg_catalog, pg_temp set datestyle = iso set jit = off set max_parallel_workers_per_gather = 0 as $$
begin
    return query execute format(
        'select r.key::text, (%1$s)::text from %2$s r %3$s and r.%4$I >= %5$s order by r.%4$I desc, %6$s desc, r.key limit %7$s',
        shown, relation,
        case when counter.own_target then 'where true'
            else format('join %s t on t.%I = r.key where %s', counter.target_table, counter.target_key, pgtally.scope_condition(counter, scope)) end,
        level, least_level, sorting, max_keys);
end
$$;
