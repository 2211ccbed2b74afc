-- head(counter, relation, level, shown, sorting, max_keys, scope, least_level, exact_below): the max_keys keys of a table that come first: key and `shown`, an SQL expression, both as text.
--
-- level: the table's column with an index, which orders the keys roughly: a key of a higher level comes before each of a lower one. sorting: SQL to order the keys of one level by, before the key itself. So the
-- index gives them level by level, and each level is sorted (incremental sort) until there are max_keys. Those below exact_below are one value each, which many keys may have, and have the key in the index.
-- Levels below least_level do not count.
--
-- With a target of the user's, keys that have no row in it any more are left out; and where scope is given, those whose row does not satisfy it.
create or replace function pgtally.head(
    counter pgtally.counter, relation text, level text, shown text, sorting text, max_keys integer, scope jsonb, least_level integer, exact_below integer default null
) returns table (key text, value text) language plpgsql stable
-- Workers for so few rows take longer to start than they help.
set search_path = pg_catalog, pg_temp set datestyle = iso set jit = off set max_parallel_workers_per_gather = 0 as $$
declare
    query constant text := format('select r.key::text, (%s)::text from %s r %s', shown, relation,
        case when counter.own_target then 'where true'
            else format('join %s t on t.%I = r.key where %s', counter.target_table, counter.target_key, pgtally.scope_condition(counter, scope)) end);
    got bigint;
begin
    return query execute format('%1$s and r.%2$I >= %3$s order by r.%2$I desc, %4$s desc, r.key limit %5$s', query, level, greatest(least_level, exact_below), sorting, max_keys);
    get diagnostics got = row_count;
    if got < max_keys and exact_below is not null then
        return query execute format('%1$s and r.%2$I >= %3$s and r.%2$I < %4$s order by r.%2$I desc, r.key limit %5$s', query, level, least_level, exact_below, max_keys - got);
    end if;
end
$$;
