-- head_query(counter, relation, level, value, sorting, max_keys, scope, least_level, exact_below): SQL text of a query for the max_keys keys of a table that come first: key (as text) and value.
--
-- level: the table's column with an index, which orders the keys roughly: a key of a higher level comes before each of a lower one. sorting: SQL to order keys of one level by, before the
-- key itself; levels below exact_below need none. So it takes the keys of all levels above the one at which max_keys are reached, and sorts those of that level, of which there are few. Levels below least_level do not count.
--
-- There are fewer than max_keys of the former; the limit tells the planner, which may have no statistics.
--
-- With a target of the user's, keys that have no row in it any more are left out; and where scope is given, those whose row does not satisfy it.
create or replace function pgtally.head_query(
    counter pgtally.counter, relation text, level text, value text, sorting text, max_keys integer, scope jsonb, least_level integer, exact_below integer
) returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    rows constant text := format('from %s r', relation) || case when counter.own_target then ' where true'
        else format(' join %s t on t.%I = r.key where %s', counter.target_table, counter.target_key, pgtally.scope_condition(counter, scope)) end;
    last_level integer;
begin
    execute format('select r.%1$I %2$s and r.%1$I >= %3$s order by r.%1$I desc offset %4$s limit 1', level, rows, least_level, max_keys - 1) into last_level;
    last_level := coalesce(last_level, least_level);
    return format(
        'select h.key::text, h.value from (
            (select r.key, %1$s as value, %2$s as sorting %3$s and r.%4$I > %5$s order by r.%4$I desc limit %7$s)
            union all
            (select r.key, %1$s, %2$s %3$s and r.%4$I = %5$s order by %6$s r.key limit %7$s)
        ) h order by h.sorting desc, h.key limit %7$s',
        value, sorting, rows, level, last_level, case when last_level < exact_below then '' else sorting || ' desc,' end, max_keys);
end
$$;
